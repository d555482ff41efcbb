"""What the tests share: gates, a TCP proxy, private servers, databases, and the model of the protocol."""

-- Who holds a lease, on a cluster?
-- KEYS: lease
-- ARGV: none
-- Result: the token, or nothing
return token_in(redis.call('GET', KEYS[1]))

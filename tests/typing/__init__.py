"""What type checkers are asked: `facts` must pass, `errors` must fail exactly where it says. Nothing here runs."""

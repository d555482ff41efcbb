-- Give a lease back, on a cluster.
-- KEYS: lease
-- ARGV: token
-- Result: 1 given back, 0 it is not held by this token
if token_in(redis.call('GET', KEYS[1])) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0

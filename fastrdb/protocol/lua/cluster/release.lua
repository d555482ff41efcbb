-- Give a lease back, on a cluster.
-- KEYS: lease
-- ARGV: token
-- Result: 1 given back, 0 the lease does not hold this token
if token_in(redis.call('GET', KEYS[1])) ~= ARGV[1] then return 0 end -- mechanism: release-checks-token
return redis.call('DEL', KEYS[1])

-- Keep a lease fresh while its load runs. The lease still ends when it would have ended.
-- KEYS: lease
-- ARGV: token, for how many ms the lease is fresh
-- Result: 1 renewed, 0 the lease does not hold this token
local held = redis.call('GET', KEYS[1])
if holder(held, READER) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], fresh(held, ARGV[2]), 'KEEPTTL')
return 1

-- Take a lease for a writer, even if another caller has it.
-- KEYS: lease
-- ARGV: token, lease ms
-- Result: the lease, to be given to fill.lua
local held = new_lease(ARGV[1], WRITER)
redis.call('SET', KEYS[1], held, 'PX', ARGV[2])
return held

-- Take a lease for a writer, whoever has it.
-- KEYS: lease
-- ARGV: token, lease ms
-- Result: what it holds
local held = sealed(ARGV[1], WRITES) .. moment()
redis.call('SET', KEYS[1], held, 'PX', ARGV[2])
return held

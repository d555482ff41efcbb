-- Take a lease for a writer, whoever has it.
-- KEYS: lease
-- ARGV: token, lease ms
-- Result: 1
redis.call('SET', KEYS[1], sealed(ARGV[1], WRITES), 'PX', ARGV[2])
return 1

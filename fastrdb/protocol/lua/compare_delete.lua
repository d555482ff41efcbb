-- Delete a key if it holds just this: an entry that nobody can read.
-- KEYS: the key
-- ARGV: what it must hold
-- Result: 1 deleted, 0 not
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0

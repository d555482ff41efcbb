-- Delete an entry that cannot be read, if it is still the same.
-- KEYS: entry
-- ARGV: the bytes that the entry must hold
-- Result: 1 deleted, 0 not
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0

-- The index has been lost, and all that it may not know of has been deleted: it is whole, unless it was lost once more.
-- KEYS: index
-- ARGV: the member that was put into it before anything was deleted
-- Result: 1 if it is whole, 0 if not
if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('ZADD', KEYS[1], 0, WHOLE)
return 1

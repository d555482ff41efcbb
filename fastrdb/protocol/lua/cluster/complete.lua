-- A shard of the index was lost, and all that it may not have has been deleted: it is complete, unless it was lost again.
-- KEYS: index
-- ARGV: the member that was put into the index before anything was deleted
-- Result: 1 if it is complete, 0 if not
if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('ZADD', KEYS[1], 0, COMPLETE)
return 1

-- Delete entries and leases of one slot, whatever they are: the data is not what it was.
-- KEYS: roster
-- ARGV: how many at most
-- Result: 1 if there may be more
local names = redis.call('ZRANGE', KEYS[1], 0, ARGV[1] - 1)
for _, name in ipairs(names) do
  redis.call('UNLINK', name)
  redis.call('ZREM', KEYS[1], name)
end
return #names == tonumber(ARGV[1]) and 1 or 0

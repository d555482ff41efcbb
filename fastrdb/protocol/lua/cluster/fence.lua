-- What a writer does in one shard before its COMMIT: set barriers; look what lies in reach; then put into the index
-- what it will write through. The caller deletes what is found, with the leases: that lies in other slots.
-- KEYS: index, expiry, barriers
-- ARGV: barrier ms, budget; then three lists, each as its length and its items:
--       barriers to set; ranges to look at (start, stop, head, filter each); keys to put into the index
-- Result: {ranges done, last key looked at, keys reached}. Fewer ranges done than sent: the budget of index members is
--         spent, and nothing has been put into the index; call again from that key on. -1 ranges: the index is not
--         complete, so what the ranges reach must be found elsewhere; call again after that.
-- Nothing leaves the index here: a writer that removed keys before it deletes them would lose sight of them, and
-- afterwards a reader may have entered them again.
local index, expiry, barriers = unpack(KEYS)
local barrier_ms, budget = tonumber(ARGV[1]), tonumber(ARGV[2])
local following = lists(3)

set_barriers(barriers, barrier_ms, following(1))

local reached = {}
local first, last = following(4)
if first <= last and not redis.call('ZSCORE', index, COMPLETE) then return {-1, '', {}} end -- mechanism: shard-is-whole
for at = first, last, 4 do
  local start, stop, head, filter = unpack(ARGV, at, at + 3)
  local keys = redis.call('ZRANGEBYLEX', index, start, stop, 'LIMIT', 0, budget)
  for _, key in ipairs(keys) do
    if reaches(head, filter, key) then reached[#reached + 1] = key end -- mechanism: fence-leaves-index
  end
  if #keys == budget then return {(at - first) / 4, keys[#keys], reached} end
  budget = budget - #keys
end
local ranges = (last - first + 1) / 4

first, last = following(1)
for i = first, last do
  put_in_index(index, expiry, ARGV[i], barrier_ms) -- mechanism: shard-write-indexed
end
return {ranges, '', reached}

-- What a writer does in one shard before its COMMIT: barriers up; then look what they reach; put into the index what it
-- will write through. What is found is for the caller to delete, with the leases: it lies in other slots.
-- KEYS: index, expiry, barriers
-- ARGV: barrier ms, budget; then three lists, each as its length and its items:
--       barriers to set; ranges to look at (start, stop, head, filter, one after the other); keys to put into the index
-- Result: {ranges done, last key looked at, keys reached}. Fewer ranges done than sent: the budget of index members
--         looked at is spent, and nothing has been put into the index; call again from that key on.
--         -1 ranges: the index was lost and has begun anew, so that what they reach must be found elsewhere. Call again then.
-- Nothing is taken out of the index: who does that before the keys are deleted loses sight of them, and afterwards
-- somebody else may have put them in again.
local index, expiry, barriers = unpack(KEYS)
local barrier_ms, budget = tonumber(ARGV[1]), tonumber(ARGV[2])
local following = lists(3)

local first, last = following(1)
if first <= last then
  redis.call('ZREMRANGEBYSCORE', barriers, '-inf', ms(now_ms()))
  local deadline = ms(now_ms() + barrier_ms)
  for i = first, last do redis.call('ZADD', barriers, 'GT', deadline, ARGV[i]) end -- mechanism: shard-barrier-set
end

local reached = {}
first, last = following(4)
if first <= last and not redis.call('ZSCORE', index, WHOLE) then return {-1, '', {}} end -- mechanism: shard-is-whole
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
for i = first, last do put_in_index(index, expiry, ARGV[i], barrier_ms) end -- mechanism: shard-write-indexed
return {ranges, '', reached}

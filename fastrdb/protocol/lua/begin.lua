-- Barriers up, then everything they reach deleted with its lease, then the writer's own leases. In this order: nobody
-- can take a lease behind the sweep, and the sweep cannot take away the writer's own.
-- KEYS: index, expiry, barriers
-- ARGV: token, barrier ms, budget, prefix of leases, '1' to spare leases of this token (a second begin);
--       then four lists, each as its length and its items:
--       barriers to set; ranges to sweep (start, stop, head, filter each); keys to delete; keys to take the lease of
-- Result: {ranges done, last key looked at, entries deleted, 1 if the index is not whole there, what the leases that
--         were taken hold}. Fewer ranges done than sent: the budget of index members looked at is spent, and nothing that comes after the ranges has been done;
--         call again from that key on. Not whole: what the rest of the ranges reaches must be found by search.lua.
-- Sent twice: deletes and sets the same again.
local index, expiry, barriers = unpack(KEYS)
local token, barrier_ms, budget, lease_prefix, spare = unpack(ARGV)
budget = tonumber(budget)
local at = 6

local function length()
  at = at + 1
  return tonumber(ARGV[at - 1])
end

local function delete(key)
  local lease = lease_name(lease_prefix, key)
  if spare == '1' and token_in(redis.call('GET', lease)) == token then return 0 end
  return delete_entry(index, expiry, key, lease)
end

local count = length()
if count > 0 then
  redis.call('ZREMRANGEBYSCORE', barriers, '-inf', ms(now_ms()))
  local deadline = ms(now_ms() + barrier_ms)
  for i = at, at + count - 1 do redis.call('ZADD', barriers, 'GT', deadline, ARGV[i]) end -- mechanism: barrier-set
  at = at + count
end

local deleted = 0
local ranges = length()
local whole = ranges > 0 and whole_heads(index)
for done = 0, ranges - 1 do
  local start, stop, head, filter = unpack(ARGV, at, at + 3)
  at = at + 4
  if not begins(head, whole) then return {done, '', deleted, 1, ''} end -- mechanism: index-is-whole
  local keys = redis.call('ZRANGEBYLEX', index, start, stop, 'LIMIT', 0, budget)
  for _, key in ipairs(keys) do
    if reaches(head, filter, key) then deleted = deleted + delete(key) end
  end
  -- As many as asked for: there may be more, and the next range has no budget left in any case.
  if #keys == budget then return {done, keys[#keys], deleted, 0, ''} end
  budget = budget - #keys
end

count = length()
for i = at, at + count - 1 do deleted = deleted + delete(ARGV[i]) end
at = at + count

count = length()
local held = token .. '\n' .. moment()
for i = at, at + count - 1 do
  local key = ARGV[i]
  local lease = lease_name(lease_prefix, key)
  redis.call('UNLINK', key)
  put_in_index(index, expiry, key, tonumber(barrier_ms))
  redis.call('SET', lease, held, 'PX', barrier_ms)
end
return {ranges, '', deleted, 0, held}

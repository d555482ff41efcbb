-- Set barriers, then delete everything in reach with its lease, then take the writer's own leases. In this order: no
-- caller can take a lease behind the sweep, and the sweep cannot delete the writer's own leases.
-- KEYS: index, expiry, barriers
-- ARGV: token, barrier ms, budget, prefix of leases, '1' to spare leases of this token (a second begin);
--       then four lists, each as its length and its items:
--       barriers to set; ranges to sweep (start, stop, head, filter each); keys to delete; keys to take the lease of
-- Result: {ranges done, last key looked at, entries deleted, 1 if the index is not complete there, the writer's lease}.
--         Fewer ranges done than sent: the budget of index members is spent, and nothing behind the ranges has been
--         done; call again from that key on. Not complete: what the other ranges reach must be found by search.lua.
-- Sent twice: deletes and sets the same again.
local index, expiry, barriers = unpack(KEYS)
local token, barrier_ms, budget, lease_prefix, spare = unpack(ARGV)
budget = tonumber(budget)
local following = lists(6)

local function delete(key)
  local lease = lease_name(lease_prefix, key)
  if spare == '1' and token_in(redis.call('GET', lease)) == token then return 0 end
  return delete_entry(index, expiry, key, lease)
end

set_barriers(barriers, barrier_ms, following(1))

local deleted = 0
local first, last = following(4)
for at = first, last, 4 do
  local start, stop, head, filter = unpack(ARGV, at, at + 3)
  local done = (at - first) / 4
  if not is_complete(index, head) then return {done, '', deleted, 1, ''} end -- mechanism: index-is-whole
  local keys = redis.call('ZRANGEBYLEX', index, start, stop, 'LIMIT', 0, budget)
  for _, key in ipairs(keys) do
    if reaches(head, filter, key) then deleted = deleted + delete(key) end
  end
  -- As many as asked for: there may be more, and the next range has no budget left in any case.
  if #keys == budget then return {done, keys[#keys], deleted, 0, ''} end
  budget = budget - #keys
end
local ranges = (last - first + 1) / 4

first, last = following(1)
for i = first, last do deleted = deleted + delete(ARGV[i]) end

first, last = following(1)
local held = new_lease(token, WRITER)
for i = first, last do
  redis.call('UNLINK', ARGV[i])
  put_in_index(index, expiry, ARGV[i], tonumber(barrier_ms))
  redis.call('SET', lease_name(lease_prefix, ARGV[i]), held, 'PX', barrier_ms)
end
return {ranges, '', deleted, 0, held}

-- Set barriers, then delete everything in reach with its lease, then take the writer's own leases. In this order: no
-- caller can take a lease behind the sweep, and the sweep cannot delete the writer's own leases.
-- KEYS: index, expiry, barriers
-- ARGV: token, barrier ms, budget, prefix of leases, '1' to spare leases of this token (a second begin), lease ms;
--       then lists, each as its length and its items: barriers to set; names to stamp, for what is committed already;
--       tables that are reached by rows (`table:`, and its columns that are named, one a line); ranges to sweep (start,
--       stop, head, filter each; the filter \0 is for a range of tags); keys to delete; keys to lease, with their tags
-- Result: {ranges done, last member looked at, entries deleted, what is lost, the writer's lease, names to add, numbers of
--         ranges with the entries deleted there, entries found by tags}.
--         Fewer ranges done than sent: the budget of members is spent, and nothing behind the ranges has been done; call
--         again from that member on. Lost: 1, the index is not complete there, and search.lua finds what the other ranges
--         reach; 2, tags were lost, and all entries must be deleted. With names to add, nothing has been swept.
-- Sent twice: deletes and sets the same again.
local index, expiry, barriers = unpack(KEYS)
local token, barrier_ms, budget, lease_prefix, spare, lease_ms = unpack(ARGV)
budget = tonumber(budget)
local following, tag_sets = lists(7), tag_keys(index)

local function is_spared(key)
  return spare == '1' and token_in(redis.call('GET', lease_name(lease_prefix, key))) == token
end

set_barriers(barriers, barrier_ms, following(1))
stamp(tag_sets, barriers, tonumber(lease_ms), following(1)) -- mechanism: stamped-before-swept
local names = unnamed(tag_sets, following(2))
if #names > 0 then return {0, '', 0, 0, '', names, {}, {}} end

local deleted, counts, found = 0, {}, {}
local first, last = following(4)
for at = first, last, 4 do
  local start, stop, head, filter = unpack(ARGV, at, at + 3)
  local done, by_tag = (at - first) / 4, filter == '\0'
  if by_tag then
    if not tags_are_whole(tag_sets) then -- mechanism: tags-are-whole
      tags_anew(tag_sets, SEARCHING .. token)
      return {done, '', deleted, 2, '', {}, counts, found}
    end
  elseif not is_complete(index, head) then -- mechanism: index-is-whole
    return {done, '', deleted, 1, '', {}, counts, found}
  end
  local members = redis.call('ZRANGEBYLEX', by_tag and tag_sets.tags or index, start, stop, 'LIMIT', 0, budget)
  local reached = {}
  for _, member in ipairs(members) do
    if by_tag then
      found[#found + 1] = entry_of(member)
      if not is_spared(found[#found]) then reached[#reached + 1] = found[#found] end
    elseif reaches(head, filter, member) and not is_spared(member) then
      reached[#reached + 1] = member
    end
  end
  local count = delete_entries(index, expiry, reached, lease_prefix)
  if count > 0 then
    deleted, counts[#counts + 1], counts[#counts + 2] = deleted + count, done, count
  end
  -- As many as asked for: there may be more, and the next range has no budget left in any case.
  if #members == budget then return {done, members[#members], deleted, 0, '', {}, counts, found} end
  budget = budget - #members
end
local ranges = (last - first + 1) / 4

local keys = {}
first, last = following(1)
for i = first, last do
  if not is_spared(ARGV[i]) then keys[#keys + 1] = ARGV[i] end
end
deleted = deleted + delete_entries(index, expiry, keys, lease_prefix)

first, last = following(2)
local held, written = new_lease(token, WRITER), {}
for i = first, last, 2 do written[#written + 1] = ARGV[i] end
if #written > 0 then
  redis.call('UNLINK', unpack(written))
  put_in_index(index, expiry, tonumber(barrier_ms), unpack(written)) -- mechanism: write-indexed
end
for i = first, last, 2 do
  forget(index, ARGV[i])
  if ARGV[i + 1] ~= '' then
    open_tags(tag_sets)
    put_tags(tag_sets, ARGV[i], ARGV[i + 1]) -- mechanism: put-is-tagged
    use_columns(tag_sets, barriers, ARGV[i + 1]) -- mechanism: put-uses-column
  end
  redis.call('SET', lease_name(lease_prefix, ARGV[i]), held, 'PX', barrier_ms)
end
return {ranges, '', deleted, 0, held, {}, counts, found}

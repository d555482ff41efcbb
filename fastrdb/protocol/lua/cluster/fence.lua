-- What a writer does in one shard before its COMMIT: set barriers; find what lies in reach; then put into the index
-- what it will write through, and under its tags. The caller deletes what is found, with the leases: that lies in other
-- slots.
-- KEYS: index, expiry, barriers; and tags, tagged, ended, columns if there are names or tags
-- ARGV: barrier ms, budget, lease ms, token; then lists, each as its length and its items: barriers to set; names to stamp,
--       for what is committed already; tables that are reached by rows (`table:`, and its columns that are named, one a
--       line); ranges to look at (start, stop, head, filter each; the filter \0 is for a range of tags); keys to put into
--       the index, with their tags
-- Result: {ranges done, last member looked at, keys reached, keys found by tags, names to add}. Fewer ranges done than
--         sent: the budget of members is spent, and nothing has been put into the index; call again from that member on.
--         -1 ranges: the index is not complete, so what the ranges reach must be found elsewhere; -2: tags were lost, and
--         all entries of the shard must be deleted; call again after that. With names to add, nothing was looked at.
-- Nothing leaves the index here: a writer that removed keys before it deletes them would lose sight of them, and
-- afterwards a reader may have entered them again.
local index, expiry, barriers = unpack(KEYS)
local barrier_ms, budget = tonumber(ARGV[1]), tonumber(ARGV[2])
local following, tag_sets = lists(5), tag_keys(4)

set_barriers(barriers, barrier_ms, following(1))
stamp(tag_sets, barriers, tonumber(ARGV[3]), following(1)) -- mechanism: shard-stamped-before-swept
local names = unnamed(tag_sets, following(2))
if #names > 0 then return {0, '', {}, {}, names} end

local reached, found = {}, {}
local first, last = following(4)
if first <= last and not redis.call('ZSCORE', index, COMPLETE) then return {-1, '', {}, {}, {}} end -- mechanism: shard-is-whole
for at = first, last, 4 do
  local start, stop, head, filter = unpack(ARGV, at, at + 3)
  local by_tag = filter == '\0'
  if by_tag and not tags_are_whole(tag_sets) then -- mechanism: shard-tags-are-whole
    tags_anew(tag_sets, COMPLETE .. COMPLETE .. ARGV[4])
    return {-2, '', {}, {}, {}}
  end
  local members = redis.call('ZRANGEBYLEX', by_tag and tag_sets.tags or index, start, stop, 'LIMIT', 0, budget)
  for _, key in ipairs(members) do
    if by_tag then found[#found + 1] = entry_of(key)
    elseif reaches(head, filter, key) then reached[#reached + 1] = key end -- mechanism: fence-leaves-index
  end
  if #members == budget then return {(at - first) / 4, members[#members], reached, found, {}} end
  budget = budget - #members
end
local ranges = (last - first + 1) / 4

first, last = following(2)
for i = first, last, 2 do
  put_in_index(index, expiry, barrier_ms, ARGV[i]) -- mechanism: shard-write-indexed
  if ARGV[i + 1] ~= '' then
    open_tags(tag_sets)
    put_tags(tag_sets, ARGV[i], ARGV[i + 1]) -- mechanism: shard-put-is-tagged
    use_columns(tag_sets, barriers, ARGV[i + 1]) -- mechanism: shard-put-uses-column
  end
end
return {ranges, '', reached, found, {}}

-- Second step of an acquire on a cluster, with the lease taken: put keys into the index, unless a barrier covers them. A
-- writer that bars such a key from now on finds the key in the index, and its lease with it.
-- KEYS: index, expiry, barriers, trusted; and tags, tagged, ended, columns if what is loaded may have tags
-- ARGV: lease ms, barrier ms, then the entries
-- Result: for each entry 1 if it is barred, else 0, or with tags the moment of the grant by the clock of stamps
local index, expiry, barriers, trusted = unpack(KEYS)
local flags, keys = {}, tag_keys(5)
for i = 3, #ARGV do
  local is_barred, lost = barred(barriers, ARGV[i]) -- mechanism: shard-barrier-check
  -- Without index and trusted ids the namespace is new, unless all three were evicted.
  local began = redis.call('EXISTS', index, trusted) > 0
  began = began or evicts_index() -- mechanism: evicted-shard
  if lost and began then -- mechanism: shard-lost-barriers-noticed
    bar_all(barriers, ARGV[2])
    is_barred = true
  end
  if not is_barred then put_in_index(index, expiry, tonumber(ARGV[1]), ARGV[i]) end -- mechanism: shard-lease-indexed
  flags[i - 2] = is_barred and 1 or 0
  if keys and not is_barred then
    if not began then redis.call('ZADD', barriers, 'NX', '+inf', NO_BARRIER) end
    redis.call('ZADD', barriers, 'LT', -ARGV[1], KEEP)
    flags[i - 2] = ms(tick(keys))
  end
end
return flags

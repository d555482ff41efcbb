-- Second step of an acquire on a cluster, when the lease is taken: put keys into the index, unless a barrier covers them.
-- Whoever bars such a key from now on finds it there, and its lease with it.
-- KEYS: index, expiry, barriers, histories
-- ARGV: lease ms, barrier ms, then the entries
-- Result: for each entry 1 if it is barred, else 0
local index, expiry, barriers, histories = unpack(KEYS)
local flags = {}
for i = 3, #ARGV do
  local closed, lost = barred(barriers, ARGV[i]) -- mechanism: shard-barrier-check
  -- Without either there has been no beginning, unless all three were evicted.
  if lost -- mechanism: shard-lost-barriers-noticed
    and (redis.call('EXISTS', index, histories) > 0
      or evicts() ~= '' -- mechanism: evicted-shard
    )
  then
    bar_all(barriers, ARGV[2])
    closed = true
  end
  if not closed then put_in_index(index, expiry, ARGV[i], tonumber(ARGV[1])) end -- mechanism: shard-lease-indexed
  flags[i - 2] = closed and 1 or 0
end
return flags

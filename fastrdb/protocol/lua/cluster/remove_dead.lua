-- Remove members of the index whose entry and lease are gone, and note until when the others live. Only those that have
-- not been entered again since the caller looked: whose score is the same, and has passed.
-- KEYS: index, expiry, tags, tagged
-- ARGV: member, score and life (ms; '' if dead) of each
-- Result: number of members removed
local index, expiry = unpack(KEYS)
local keys = tag_keys(3)
local now, removed = now_ms(), 0
for i = 1, #ARGV, 3 do
  local member, seen, life = unpack(ARGV, i, i + 2)
  local score = redis.call('ZSCORE', expiry, member)
  if score
    and tonumber(score) == tonumber(seen) and tonumber(score) <= now -- mechanism: bury-unchanged-only
  then
    if life == '' then
      redis.call('ZREM', index, member)
      redis.call('ZREM', expiry, member)
      forget_tags(keys, member)
      removed = removed + 1
    else
      redis.call('ZADD', expiry, ms(now + math.max(life, RECHECK_MS) + SLACK_MS), member)
    end
  end
end
return removed

-- Take out of the index whose entry and lease are gone; of the others note until when they live. Only those that nobody
-- has put into the index since they were looked for: whose score is the same, and over still.
-- KEYS: index, expiry
-- ARGV: member, score and life (ms; none: '') of each
-- Result: number of members taken out
local index, expiry = unpack(KEYS)
local now, buried = now_ms(), 0
for i = 1, #ARGV, 3 do
  local member, seen, life = unpack(ARGV, i, i + 2)
  local score = redis.call('ZSCORE', expiry, member)
  if score
    and tonumber(score) == tonumber(seen) and tonumber(score) <= now -- mechanism: bury-unchanged-only
  then
    if life == '' then
      redis.call('ZREM', index, member)
      redis.call('ZREM', expiry, member)
      buried = buried + 1
    else
      redis.call('ZADD', expiry, ms(now + math.max(life, RECHECK_MS) + SLACK_MS), member)
    end
  end
end
return buried

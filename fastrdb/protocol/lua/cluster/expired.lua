-- Note until when entries live that have been stored, and list members of the index that may be dead by now.
-- KEYS: expiry
-- ARGV: how many to list, then entry and ttl ms of each
-- Result: a member and its score, one after the other, for each that may be dead
local expiry, now = KEYS[1], now_ms()
for i = 2, #ARGV, 2 do redis.call('ZADD', expiry, 'GT', ms(now + ARGV[i + 1] + SLACK_MS), ARGV[i]) end
return redis.call('ZRANGEBYSCORE', expiry, '-inf', ms(now), 'WITHSCORES', 'LIMIT', 0, ARGV[1])

-- Take barriers down.
-- KEYS: barriers
-- ARGV: the barriers
-- Result: 1 if all of them stood until now, 0 if one was down before its time: it may have stood for too short
local stood, now = 1, now_ms()
for _, barrier in ipairs(ARGV) do
  local deadline = redis.call('ZSCORE', KEYS[1], barrier)
  if not deadline or tonumber(deadline) <= now then stood = 0 end
  redis.call('ZREM', KEYS[1], barrier)
end
return stood

-- The outcome of a transaction is known: fill what it wrote, where the lease is its own still (another writer may have
-- come since); give back the leases it has no value for; then take its barriers down.
-- KEYS: index, expiry, barriers, server
-- ARGV: token, prefix of leases; then three lists, each as its length and its items:
--       fills (key, what its lease holds, raw, ttl ms each); keys to release; barriers to remove
-- Result: {number of keys filled, 1 if a barrier was down before its time: somebody may have stored what was loaded
--         before the COMMIT, so the caller has to delete once more what it reaches}
-- Sent twice: the second finds the barriers down.
local index, expiry, barriers, server = unpack(KEYS)
local token, lease_prefix = unpack(ARGV)
local at = 3

local function length()
  at = at + 1
  return tonumber(ARGV[at - 1])
end

-- After a restart or a failover a lease may be back that another writer had taken away: what it fills goes, too.
local filled, down = 0, at_home(server, index, expiry, barriers) and 0 or 1
for _ = 1, length() do
  local key, held, raw, ttl_ms = unpack(ARGV, at, at + 3)
  filled = filled + fill(index, expiry, key, lease_name(lease_prefix, key), held, raw, ttl_ms)
  at = at + 4
end

local count = length()
for i = at, at + count - 1 do
  local lease = lease_name(lease_prefix, ARGV[i])
  if token_in(redis.call('GET', lease)) == token then redis.call('DEL', lease) end
end
at = at + count

count = length()
local now = now_ms()
for i = at, at + count - 1 do
  local deadline = redis.call('ZSCORE', barriers, ARGV[i])
  if not deadline or tonumber(deadline) <= now then down = 1 end -- mechanism: barriers-stood
  redis.call('ZREM', barriers, ARGV[i]) -- mechanism: barriers-told-apart
end
return {filled, down}

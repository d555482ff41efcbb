-- The outcome of a transaction is known: fill what it wrote, where the lease is its own still (another writer may have
-- come since); give back the leases it has no value for; then take its barriers down.
-- KEYS: index, expiry, barriers
-- ARGV: token, prefix of leases; then three lists, each as its length and its items:
--       fills (key, raw, ttl ms each); keys to release; barriers to remove
-- Result: number of keys filled. Sent twice: the second finds nothing left to do.
local index, expiry, barriers = unpack(KEYS)
local token, lease_prefix = unpack(ARGV)
local at = 3

local function length()
  at = at + 1
  return tonumber(ARGV[at - 1])
end

local filled = 0
for _ = 1, length() do
  local key, raw, ttl_ms = unpack(ARGV, at, at + 2)
  filled = filled + fill(index, expiry, key, lease_name(lease_prefix, key), token, raw, ttl_ms)
  at = at + 3
end

local count = length()
for i = at, at + count - 1 do
  local lease = lease_name(lease_prefix, ARGV[i])
  if redis.call('GET', lease) == token then redis.call('DEL', lease) end
end
at = at + count

count = length()
for i = at, at + count - 1 do redis.call('ZREM', barriers, ARGV[i]) end
return filled

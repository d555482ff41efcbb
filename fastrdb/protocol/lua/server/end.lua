-- The outcome of a transaction is known: fill what it wrote, where the lease is still its own (another writer may have
-- come since); give back the leases without a value; then remove its barriers.
-- KEYS: index, expiry, barriers, trusted
-- ARGV: token, prefix of leases, namespace with its colon, lease ms; then four lists, each as its length and its items:
--       fills (key, lease, raw, ttl ms each); keys to release; names to stamp; barriers to remove
-- Result: 1 if all barriers stood until now, else 0: a reader may have stored what it loaded before the COMMIT, so the
--         caller has to delete once more what it reaches
-- Sent twice: the second finds no barriers.
local index, expiry, barriers, trusted = unpack(KEYS)
local token, lease_prefix, before, lease_ms = unpack(ARGV)
local following = lists(5)

-- After a restart or a failover a lease may be back that another writer had deleted: what it fills is deleted again.
local stood = is_trusted(index, expiry, barriers, trusted, before)
local first, last = following(4)
for at = first, last, 4 do
  local key, held, raw, ttl_ms = unpack(ARGV, at, at + 3)
  fill(index, expiry, key, lease_name(lease_prefix, key), held, raw, ttl_ms)
end

first, last = following(1)
for i = first, last do
  local lease = lease_name(lease_prefix, ARGV[i])
  if token_in(redis.call('GET', lease)) == token then redis.call('DEL', lease) end
end
-- Stamps before the barriers go: at each moment one of the two refuses a fill.
stamp(tag_keys(index), barriers, tonumber(lease_ms), following(1))
return remove_barriers(barriers, following(1)) and stood and 1 or 0

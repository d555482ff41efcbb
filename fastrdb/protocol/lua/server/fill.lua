-- Store what was loaded, if no writer has invalidated the key since: then the lease is still there.
-- KEYS: entry, lease, index, expiry, barriers, trusted
-- ARGV: the lease as acquire.lua gave it, raw, ttl ms, prefix of leases, how many dead index members to remove,
--       namespace with its colon, tags of the entry, one a line
-- Result: 1 stored, 0 not, or the tag that a writer has reached since the grant ('\0': that is unknown). Sent twice: the
--         second finds no lease and returns 0; what is stored stays.
local entry, lease, index, expiry, barriers, trusted = unpack(KEYS)
local held, raw, ttl_ms, lease_prefix, limit, before, tags = unpack(ARGV)

if not is_trusted(index, expiry, barriers, trusted, before) then return 0 end
local why
if tags ~= '' and may_fill(lease, held) then
  why = touched(tag_keys(index), barriers, before, tags, granted_at(held)) -- mechanism: fill-checks-tags
  if why then redis.call('DEL', lease) end
end
local stored = why or fill(index, expiry, entry, lease, held, raw, ttl_ms, tags ~= '' and tags)
remove_dead(index, expiry, lease_prefix, limit) -- mechanism: fill-sweeps
return stored

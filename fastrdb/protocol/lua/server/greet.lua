-- What a server is asked before its data is used.
-- KEYS: index, expiry, barriers, trusted
-- ARGV: namespace with its colon
-- Result: {replication id, role, eviction policy, 1 if it may evict the index, ids and marks that are trusted, each with
--          its number} | {'', why the server does not say}
local index, expiry, barriers, trusted = unpack(KEYS)
local id, role = replication_id()
if not id then return {'', role} end
if role ~= 'slave' then is_trusted(index, expiry, barriers, trusted, ARGV[1]) end
local policy, evicts = eviction_policy()
return {id, role, policy, evicts, redis.call('ZRANGEBYSCORE', trusted, '-inf', '+inf', 'WITHSCORES')}

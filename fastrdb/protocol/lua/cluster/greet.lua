-- What a server of a cluster is asked before its data is used.
-- KEYS: none
-- ARGV: namespace with its colon
-- Result: {replication id, role, eviction policy, 1 if it may evict the index, 1 if the server has no string that may be an
--          entry, else 0}
--         | {'', why it does not say}. It scans a hundred keys; if there are more, some may be entries.
local id, role = replication_id()
if not id then return {'', role} end
local found = redis.pcall('SCAN', 0, 'COUNT', 100, 'TYPE', 'string', 'MATCH', ARGV[1] .. '*')
local has_none = found.err or found[1] == '0' and #found[2] == 0
local policy, evicts = eviction_policy()
return {id, role, policy, evicts, has_none and 1 or 0}

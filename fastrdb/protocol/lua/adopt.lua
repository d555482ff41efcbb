-- Is what is here this server's own data? After a restart from a snapshot, or a failover to a replica that lacked the
-- last deletes, it is not: then one process deletes all that is indexed, and adopts what is left.
-- KEYS: index, expiry, barriers, server, healing
-- ARGV: token ('' only asks), the life in which everything has been deleted ('' none), how long (ms) one process may take
-- Result: {'same', what the server evicts, see evicts()} | {'other'} | {'mine', life} the caller is to delete everything | {'busy'} another process does
--         | {'replica'} not to be used at all | {'unknown', why} the server does not tell
local index, expiry, barriers, server, healing = unpack(KEYS)
local token, done, ms = unpack(ARGV)

local own, role = life()
if not own then return {'unknown', role} end
if role == 'slave' then return {'replica'} end
if at_home(server, index, expiry, barriers) then return {'same', evicts()} end
if token == '' then return {'other'} end
-- In another life what was deleted may have come back.
if done == own then -- mechanism: healed-life
  redis.call('SET', server, own)
  redis.call('DEL', healing)
  return {'same', evicts()}
end
local holder = redis.call('GET', healing)
if holder and holder ~= token then return {'busy'} end
redis.call('SET', healing, token, 'PX', ms)
return {'mine', own}

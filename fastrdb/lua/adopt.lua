-- Is what is here this server's own data? After a restart from a snapshot, or a failover to a replica that lacked the
-- last deletes, it is not: then one process deletes all that is indexed, and adopts what is left.
-- KEYS: index, server, healing
-- ARGV: token ('' only asks), '1' if everything has been deleted, how long (ms) one process may take
-- Result: {'same'} | {'other'} | {'mine'} the caller is to delete everything | {'busy'} another process does
--         | {'unknown', why} the server does not tell its run_id
local index, server, healing = unpack(KEYS)
local token, done, ms = unpack(ARGV)

local own, why = run_id()
if not own then return {'unknown', why} end
if at_home(server, index) then return {'same'} end
if token == '' then return {'other'} end
local holder = redis.call('GET', healing)
if holder and holder ~= token then return {'busy'} end
if holder and done == '1' then
  redis.call('SET', server, own)
  redis.call('DEL', healing)
  return {'same'}
end
redis.call('SET', healing, token, 'PX', ms)
return {'mine'}

-- May the caller load this key and store it? Its token in the lease says yes: the first to ask gets it.
-- KEYS: entry, lease, index, expiry, barriers, server
-- ARGV: token, lease ms, '1' to load although there is an entry
-- Result: {'hit', raw} | {'granted'} | {'busy', token of the holder} | {'barred'}
--         | {'restarted'}: the data is not this server's own, or it is a replica by now
-- Sent twice (a lost reply): the own token is granted again.
local entry, lease, index, expiry, barriers, server = unpack(KEYS)
local token, lease_ms, refresh = unpack(ARGV)

if not at_home(server, index) then return {'restarted'} end
local raw = refresh ~= '1' and redis.call('GET', entry)
if raw then return {'hit', raw} end

local holder = redis.call('GET', lease)
if barred(barriers, entry) then
  -- A writer came between the two sendings, and its sweep has yet to reach this lease.
  if holder == token then redis.call('DEL', lease) end
  return {'barred'}
end
if holder and holder ~= token then return {'busy', holder} end

put_in_index(index, expiry, entry, tonumber(lease_ms))
redis.call('SET', lease, token, 'PX', lease_ms)
return {'granted'}

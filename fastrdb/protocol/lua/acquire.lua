-- May the caller load this key and store it? Its token in the lease says yes: the first to ask gets it.
-- KEYS: entry, lease, index, expiry, barriers, server
-- ARGV: token, lease ms, barrier ms, which entry does not answer: see answer(). One that the caller has seen has at most so many ms
--       left to live, one that has been stored since has more
-- Result: {'hit', raw} | {'granted', what the lease holds: what fill.lua is to be given} | {'busy', token of the holder} | {'barred'}
--         | {'restarted'}: the data is not this server's own, or it is a replica by now
-- Sent twice (a lost reply): the own lease is granted again, if it is there still.
local entry, lease, index, expiry, barriers, server = unpack(KEYS)
local token, lease_ms, barrier_ms, old = unpack(ARGV)

if not at_home(server, index, expiry, barriers) then return {'restarted'} end
local raw = answer(entry, old)
if raw then return {'hit', raw} end

local held = redis.call('GET', lease)
local holder = token_in(held)
local closed, lost = barred(barriers, entry)
if lost -- mechanism: lost-barriers-noticed
  and redis.call('EXISTS', server) == 1 -- one that does not tell its life has had no beginning
then
  bar_all(barriers, barrier_ms)
  closed = true
end
if closed then -- mechanism: barrier-check
  -- A writer came between the two sendings, and its sweep has yet to reach this lease.
  if holder == token then redis.call('DEL', lease) end
  return {'barred'}
end
if holder and holder ~= token then return {'busy', holder} end -- mechanism: own-lease-granted-again

held = held or token .. '\n' .. moment()
put_in_index(index, expiry, entry, tonumber(lease_ms)) -- mechanism: lease-indexed
redis.call('SET', lease, held, 'PX', lease_ms)
return {'granted', held}

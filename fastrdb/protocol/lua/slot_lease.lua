-- First step of an acquire on a cluster: the lease, for the first to ask, unless there is an entry.
-- KEYS: entry, lease, roster
-- ARGV: token, lease ms, which entry does not answer: see answer()
-- Result: {'hit', raw} | {'granted', history ('' if the server does not tell), what the lease holds} | {'busy', token of the holder} | {'barred'}:
--         a writer has it
-- Sent twice (a lost reply): the own lease is granted again, if it is there still.
local entry, lease, roster = unpack(KEYS)
local token, lease_ms, old = unpack(ARGV)

local raw = answer(entry, old)
if raw then return {'hit', raw} end

local held = redis.call('GET', lease)
local holder = token_in(held)
if holder and holder ~= token then
  if is_sealed(held, READS) then return {'busy', holder} end
  if is_sealed(held, WRITES) then return {'barred'} end
end

enlist(roster, lease, tonumber(lease_ms)) -- mechanism: lease-enlisted
if holder ~= token or not is_sealed(held, READS) then held = sealed(token, READS) .. moment() end
redis.call('SET', lease, held, 'PX', lease_ms)
return {'granted', history() or '', held}

-- First step of an acquire on a cluster: take the lease, unless there is an entry or another caller has the lease.
-- KEYS: entry, lease, roster
-- ARGV: token, lease ms, which entry does not answer: see answer(), for how many ms the lease is fresh
-- Result: {'hit', raw} | {'granted', the lease: to be given to fill.lua} | {'busy', token of the holder} | {'barred'}: a
--         writer has the lease
-- Sent twice (a lost reply): the own lease is granted again, if it is still there.
local entry, lease, roster = unpack(KEYS)
local token, lease_ms, old, fresh_ms = unpack(ARGV)

local raw = answer(entry, old)
if raw then return {'hit', raw} end

local held = redis.call('GET', lease)
local reader = holder(held, READER)
if reader and not is_fresh(held) and reader ~= token then reader = nil end
if reader and reader ~= token then return {'busy', reader} end
if not reader and holder(held, WRITER) and token_in(held) ~= token then return {'barred'} end

held = fresh(reader and held or new_lease(token, READER), fresh_ms)
enlist(roster, lease, tonumber(lease_ms)) -- mechanism: lease-enlisted
redis.call('SET', lease, held, 'PX', lease_ms)
return {'granted', held}

-- May the caller load this key and store the result? The first to ask gets the lease.
-- KEYS: entry, lease, index, expiry, barriers, trusted
-- ARGV: token, lease ms, barrier ms, namespace with its colon, which entry does not answer: see answer(), for how many
--       ms the lease is fresh; '1' if what is loaded may have tags: then the lease's moment is by the clock of stamps
-- Result: {'hit', raw} | {'granted', the lease: to be given to fill.lua} | {'busy', token of the holder} | {'barred'}
--         | {'restarted'}: the data is not this server's own, or the server is a replica by now
-- Sent twice (a lost reply): the own lease is granted again, if it is still there.
local entry, lease, index, expiry, barriers, trusted = unpack(KEYS)
local token, lease_ms, barrier_ms, before, old, fresh_ms, tagged = unpack(ARGV)

if not is_trusted(index, expiry, barriers, trusted, before) then return {'restarted'} end
local raw = answer(entry, old)
if raw then return {'hit', raw} end

local held = redis.call('GET', lease)
local is_barred, lost = barred(barriers, entry)
local began = not lost or redis.call('EXISTS', trusted) == 1 -- false where the server denies INFO
if lost and began then -- mechanism: lost-barriers-noticed
  bar_all(barriers, barrier_ms)
  is_barred = true
end
if is_barred then -- mechanism: barrier-check
  -- The lease may be the caller's own: a writer came between two sendings, and its sweep has yet to reach the lease.
  if token_in(held) == token then redis.call('DEL', lease) end
  return {'barred'}
end
local reader = holder(held, READER)
if reader and not is_fresh(held) and reader ~= token then reader = nil end
if reader and reader ~= token then return {'busy', reader} end -- mechanism: own-lease-granted-again
if holder(held, WRITER) then return {'barred'} end

if tagged == '1' and not reader then
  redis.call('ZADD', barriers, 'LT', -lease_ms, KEEP)
  if not began then redis.call('ZADD', barriers, 'NX', '+inf', NO_BARRIER) end
end
held = fresh(reader and held or new_lease(token, READER, tagged == '1' and ms(tick(tag_keys(index)))), fresh_ms)
put_in_index(index, expiry, tonumber(lease_ms), entry) -- mechanism: lease-indexed
redis.call('SET', lease, held, 'PX', lease_ms)
return {'granted', held}

-- Look at some of all the keys there are, for the index does not have them all: it was lost, or is new among other keys.
-- To be called from cursor 0 until the cursor is 0 again, for the leases and then for the entries: a lease that is looked
-- at later may have become an entry. Deletes what the targets reach. When it is through, the index is complete under
-- their heads; and everywhere, when the keys that it lacks have expired.
-- Other programs' keys are taken for entries if the targets reach these and if each is a string that expires.
-- KEYS: index, expiry
-- ARGV: own token, what to look at (leases | entries), cursor, how many keys, prefix of leases, namespace with its colon,
--       token whose leases and their entries to spare ('' none), '1' to delete what the index has, too, the longest life
--       left so far (ms) of a key that the index lacks; then targets as their number and head, filter of each
-- Result: {next cursor, the longest life left so far, entries deleted}
local index, expiry = unpack(KEYS)
local token, part, cursor, count, lease_prefix, before, spared, all, longest = unpack(ARGV)
local first, last = lists(10)(2)
local OWN, PATIENCE_MS = 'fastrdb:', 600000 -- a search that takes longer is taken for dead
local search = SEARCHING .. token
longest = tonumber(longest)

local function spares(lease)
  return spared ~= '' and token_in(redis.call('GET', lease)) == spared
end

local function reached(key, known)
  if all == '1' and known then return true end -- mechanism: search-spares-unknown
  for i = first, last, 2 do
    if reaches(ARGV[i], ARGV[i + 1], key) then return true end
  end
  return false
end

local found = {}
local function look_at(key)
  local life, known = redis.call('PTTL', key), redis.call('ZSCORE', index, key)
  if begins(key, OWN) then return end
  if life < 0 and not known then return end -- mechanism: search-spares-lasting
  if not reached(key, known) then
    if not known then longest = math.max(longest, life) end
    return
  end
  if not spares(lease_name(lease_prefix, key)) then found[#found + 1] = key end
end

if part == 'leases' and cursor == '0' then enter(index, expiry, search, ms(now_ms() + PATIENCE_MS)) end
-- A namespace has no letter that would mean something to MATCH.
local head = part == 'leases' and lease_prefix or before
local reply = redis.call('SCAN', cursor, 'COUNT', count, 'TYPE', 'string', 'MATCH', head .. '*')
for _, key in ipairs(reply[2]) do
  if part == 'entries' then
    look_at(key)
  elseif redis.call('PTTL', key) > 0 and not spares(key) then
    -- Every lease: one that the index does not have would be filled behind the next sweep.
    redis.call('DEL', key) -- mechanism: search-deletes-leases
  end
end
local deleted = delete_entries(index, expiry, found, lease_prefix)

-- If the index was lost once more since the search began, keys that came meanwhile are missing: then it stays not whole.
local is_done = part == 'entries' and reply[1] == '0'
if is_done and redis.call('ZREM', index, search) == 1 then -- mechanism: search-uninterrupted
  redis.call('ZREM', expiry, search)
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', expiry, '+inf', '+inf')) do -- of an index that was lost
    if not redis.call('ZSCORE', index, name) then redis.call('ZREM', expiry, name) end
  end
  for i = first, last, 2 do
    if ARGV[i + 1] == '' then enter(index, expiry, COMPLETE .. ARGV[i], '+inf') end
  end
  if longest == 0 then
    enter(index, expiry, COMPLETE, '+inf')
  elseif #redis.call('ZRANGEBYLEX', index, '[' .. COMPLETE_FROM, '(' .. COMPLETE_FROM .. '\255', 'LIMIT', 0, 1) == 0 then
    enter(index, expiry, COMPLETE_FROM .. ms(now_ms() + longest + SLACK_MS), '+inf')
  end
end
return {reply[1], longest, deleted}

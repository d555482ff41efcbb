-- Look at some of all the keys there are, for the index does not know them all: it was lost, or is new among others' keys.
-- To be called from cursor 0 until it is 0 again, for the leases and after that for the entries: a lease that is gone by
-- the time may have become an entry.
-- Deletes what is reached, and every lease: those that the index does not know would be filled behind the next sweep. Puts
-- entries into the index that lie under a known head. Others' keys under such a head are taken for entries if they are
-- strings that expire. When it is through, the index is whole under those heads; and everywhere, when what it left has died.
-- KEYS: index, expiry
-- ARGV: own token, what to look for (leases | entries), cursor, how many keys, prefix of leases, what every entry begins
--       with, token whose leases and their entries to spare ('' none), the longest life left so far (ms); then two lists,
--       each as its length and its items: what to delete (head, filter each); known heads. A head and filter of '' are all
--       that the index has or that is under a known head.
-- Result: {next cursor, the longest life left so far, entries deleted}
local index, expiry = unpack(KEYS)
local token, part, cursor, count, lease_prefix, before, spared, longest = unpack(ARGV)
local following = lists(9)
local first, last = following(2)
local heads = {}
local from, to = following(1)
for i = from, to do heads[#heads + 1] = ARGV[i] end

local OWN = 'fastrdb:'
local PATIENCE_MS = 600000 -- who has not come to the end by then is dead
local deleted = 0
longest = tonumber(longest)

local function spares(lease)
  return spared ~= '' and token_in(redis.call('GET', lease)) == spared
end

-- What a head and a filter say is reached; all there is, what is ours.
local targets, all = {}, false
for i = first, last, 2 do
  if ARGV[i] == '' and ARGV[i + 1] == '' then all = true else targets[#targets + 1] = i end
end
local function reached(key)
  for _, i in ipairs(targets) do
    if reaches(ARGV[i], ARGV[i + 1], key) then return true end
  end
  return false
end

local function look(key)
  local life, under, target = redis.call('PTTL', key), begins(key, heads), reached(key)
  if life < 0 and not (under or target or all) then return end
  local known = redis.call('ZSCORE', index, key)
  if life < 0 and not known then return end -- mechanism: search-spares-lasting
  if target or all
    and (known or under) -- mechanism: search-spares-unknown
  then
    local lease = lease_name(lease_prefix, key)
    if not spares(lease) then deleted = deleted + delete_entry(index, expiry, key, lease) end
  elseif not known and under then
    put_in_index(index, expiry, key, life)
  elseif not known then
    longest = math.max(longest, life)
  end
end

local search = SEARCH .. token
if part == 'leases' and cursor == '0' then enter(index, expiry, search, ms(now_ms() + PATIENCE_MS)) end
-- A namespace has no letter that would mean something to MATCH.
local head = part == 'leases' and lease_prefix or before
local reply = redis.call('SCAN', cursor, 'COUNT', count, 'TYPE', 'string', 'MATCH', head .. '*')
for _, key in ipairs(reply[2]) do
  if part == 'entries' then
    if string.sub(key, 1, #OWN) ~= OWN then look(key) end
  elseif redis.call('PTTL', key) > 0 and not spares(key) then
    redis.call('DEL', key) -- mechanism: search-deletes-leases
  end
end

-- Lost once more since it began, it says nothing: what was put into it meanwhile is not in it any more.
if part == 'entries' and reply[1] == '0'
  and redis.call('ZREM', index, search) == 1 -- mechanism: search-uninterrupted
then
  redis.call('ZREM', expiry, search)
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', expiry, '+inf', '+inf')) do -- of an index that was lost
    if not redis.call('ZSCORE', index, name) then redis.call('ZREM', expiry, name) end
  end
  for _, head in ipairs(heads) do enter(index, expiry, MARK .. head, '+inf') end
  if longest == 0 then
    enter(index, expiry, MARK, '+inf')
  elseif #redis.call('ZRANGEBYLEX', index, '[' .. FROM, '(' .. FROM .. '\255', 'LIMIT', 0, 1) == 0 then
    enter(index, expiry, FROM .. ms(now_ms() + longest + SLACK_MS), '+inf')
  end
end
return {reply[1], longest, deleted}

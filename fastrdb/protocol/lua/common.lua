-- Put in front of every script. A function here touches a key only if its name or a parameter says so.

local SLACK_MS = 1000 -- an index member outlives its entry by this
local RECHECK_MS = 60000 -- a member whose entry outlived its score (PERSIST by hand) is checked again after this
local TOKEN_BYTES = 32 -- a barrier is: token, head, newline, filter
local NO_BARRIER = string.rep('0', TOKEN_BYTES) .. '\0\n' -- covers no key; where it is missing, barriers were lost
local KEEP = string.rep('0', TOKEN_BYTES) .. '\0keep\n' -- among barriers; its score: so long (ms, below zero) lapsed ones are kept
local COMPLETE = '\0' -- an index member that says: every key under the head behind it is in the index
local MOST_LOOKS = 2048 -- so many barriers one script looks at: with more, its keys count as barred
local MOST_STEPS = 20000 -- so many letters of globs one script compares: what is left counts as a match
local READER, WRITER = 'r', 'w' -- which kind of caller has a lease

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function ms(number) return string.format('%.0f', number) end

-- The replication id and the role of the server; nil and the reason where an ACL denies INFO. The id changes with each
-- start and each promotion. (run_id stays the same when a master is demoted and promoted again, with another's data.)
local known_id, known_role
local function replication_id()
  if known_role then return known_id, known_role end
  local info = redis.pcall('INFO', 'replication')
  if type(info) ~= 'string' then return nil, info.err or 'INFO' end
  local id = string.match(info, 'master_replid:(%w+)') -- mechanism: replication-id -- mechanism: replication-id
  if not id then
    local server = redis.pcall('INFO', 'server')
    id = type(server) == 'string' and string.match(server, 'run_id:(%w+)') or nil
  end
  known_id, known_role = id, id and string.match(info, 'role:(%w+)') or 'neither master_replid nor run_id in INFO'
  return known_id, known_role
end

-- The policy by which the server evicts keys without a TTL, such as the index; '' if it evicts none, or denies INFO.
local function eviction_policy()
  local info = redis.pcall('INFO', 'memory')
  if type(info) ~= 'string' or string.find(info, '\nmaxmemory:0\r') then return '' end
  return string.match(info, 'maxmemory_policy:(allkeys[%w-]*)') or ''
end

-- A lease holds a token, the replication id under which it was granted, the kind of its holder, and the moment of the
-- grant. The id makes a lease void that came back with old data. With the moment two grants to one token differ: a
-- command that is sent twice may be granted again after a writer, and the load of the first grant must not be stored.
-- A reader's lease ends with the moment (ms) until which it is fresh. Its holder renews it while the load runs. A caller
-- that finds a lease no longer fresh takes it over: the holder is dead, or never saw the grant.
local function sealed(token, kind)
  return token .. '\n' .. (replication_id() or '') .. '\n' .. kind -- mechanism: lease-has-history
end

local function new_lease(token, kind, moment)
  local time = redis.call('TIME')
  return sealed(token, kind) .. (moment or time[1] .. '.' .. time[2])
end

local function grant_in(held)
  return held and string.match(held, '^[^\n]*\n[^\n]*\n[^\n]*')
end

local function fresh(held, for_ms)
  return grant_in(held) .. '\n' .. ms(now_ms() + for_ms)
end

-- Without a moment, the lease is of another version of fastrdb, whose loads do not renew it.
local function is_fresh(held)
  local until_ms = string.match(held, '\n(%d+)$')
  return not until_ms or tonumber(until_ms) > now_ms() -- mechanism: dead-holders-noticed
end

local function token_in(held)
  return held and string.match(held, '^[^\n]*')
end

local function begins(text, head)
  return string.sub(text, 1, #head) == head
end

-- The token in a lease that is valid and of this kind, else nil.
local function holder(held, kind)
  local token = token_in(held)
  return token and begins(held, sealed(token, kind)) and token or nil
end

-- Is the byte a part of a character, but not its first one?
local function continues(byte)
  return byte and byte >= 128 and byte < 192
end

-- What is left of MOST_LOOKS and MOST_STEPS. More is then barred or deleted, never less, and no argument of a caller can
-- hold the server up.
local looks_left, steps_left = MOST_LOOKS, MOST_STEPS

-- Where `piece`, in which `?` is any one character, ends in `text` if it begins at `from`; nil if it does not stand there.
local function stands_at(text, piece, from)
  local at = from
  for i = 1, #piece do
    local wanted, found = string.byte(piece, i), string.byte(text, at)
    steps_left = steps_left - 1
    if not found or (wanted ~= found and wanted ~= 63) then return nil end
    at = at + 1
    while wanted == 63 and continues(string.byte(text, at)) do at = at + 1 end
  end
  return at - 1
end

-- Where `piece` begins and ends first at or behind `from`.
local function find_piece(text, piece, from)
  if not string.find(piece, '?', 1, true) then
    steps_left = steps_left - #text / 16 - 1
    return string.find(text, piece, from, true)
  end
  for at = from, #text do
    if steps_left < 0 then return nil end
    local stop = not continues(string.byte(text, at)) and stands_at(text, piece, at)
    if stop then return at, stop end
  end
end

-- Does a value end here? At the end of the key, before a separator, before the mark of the value's type.
local function value_ends(text, at)
  return at > #text or string.find(':?&', string.sub(text, at, at), 1, true) or string.sub(text, at, at + 1) == '%a'
end

-- Does `text` match the glob of a prefix? A glob ends in `*`, or in `$`: what matches last is a whole value then. Each
-- piece between two `*` is found leftmost in turn: no backtracking, so no glob and no key can hold the server up.
local function compare(text, glob)
  local at, from, first = 1, 1, true
  while true do
    local star = string.find(glob, '*', from, true)
    if not star then break end
    local piece, stop = string.sub(glob, from, star - 1), nil
    if first then stop = stands_at(text, piece, 1) else stop = select(2, find_piece(text, piece, at)) end
    if not stop then return false end
    at, from, first = stop + 1, star + 1, false
  end
  if from > #glob then return true end
  local last = string.sub(glob, from, -2)
  if first then
    local stop = stands_at(text, last, 1)
    return stop ~= nil and value_ends(text, stop + 1) and true or false
  end
  while true do
    local begun, stop = find_piece(text, last, at)
    if not begun then return false end
    if value_ends(text, stop + 1) then return true end
    at = begun + 1
  end
end

local function fits(text, glob)
  return compare(text, glob) or steps_left < 0 -- mechanism: steps-bounded
end

local function may_fill(lease, held)
  local grant = grant_in(redis.call('GET', lease))
  return grant and grant == grant_in(held) and (holder(held, READER) or holder(held, WRITER))
end

-- The entry that answers a caller that asks for its lease. `old` says which entry does not: '' every entry answers, '*'
-- none does, a number: only an entry that has more than so many ms left.
local function answer(entry, old)
  local raw = old ~= '*' and redis.call('GET', entry)
  if not raw or old == '' then return raw end
  local left = redis.call('PTTL', entry)
  return (left < 0 or left > tonumber(old)) and raw
end

-- Does `filter` let `key` through, which begins with `head`? '' lets all through, '=' only the head itself; else what
-- follows the head must fit the glob. What a long key's value was cannot be read from its digest, `%h`: it is let through.
local function reaches(head, filter, key)
  if not begins(key, head) then return false end
  if filter == '' then return true end
  if filter == '=' then return #key == #head end
  -- A filter of another version of fastrdb, in a barrier of its writer, lets all through: more is barred, never less.
  if not string.find(filter, '[*$]$') or string.find(filter, '\n', 1, true) then return true end
  local digest = string.find(key, '%h', #head + 1, true)
  if digest and (filter ~= '$' or digest == #head + 1) then return true end
  return fits(string.sub(key, #head + 1), filter)
end

-- Does a barrier cover the key? Second result: have barriers been lost?
local function barred(barriers, key)
  local lost = true
  local standing = redis.call('ZRANGEBYSCORE', barriers, '(' .. ms(now_ms()), '+inf', 'LIMIT', 0, looks_left + 1)
  looks_left = looks_left - #standing
  if looks_left < 0 then -- mechanism: looks-bounded
    looks_left = 0
    return true
  end
  for _, barrier in ipairs(standing) do
    if barrier == NO_BARRIER then lost = false end
    local newline = string.find(barrier, '\n', TOKEN_BYTES + 1, true)
    if not newline then return true end
    local head = string.sub(barrier, TOKEN_BYTES + 1, newline - 1)
    if reaches(head, string.sub(barrier, newline + 1), key) then return true end
  end
  return false, lost
end

-- Remove some members whose score, a moment, has passed: more than are added, so that the set does not grow.
local function forget_before(set, now, most)
  local over = redis.call('ZRANGEBYSCORE', set, 0, ms(now), 'LIMIT', 0, most)
  if #over > 0 then redis.call('ZREM', set, unpack(over)) end
end

local function set_barriers(barriers, barrier_ms, first, last)
  if first > last then return end
  local now = now_ms()
  -- A load that began before a barrier lapsed may still be under way: for tags, its fill looks at lapsed barriers.
  local kept = redis.call('ZSCORE', barriers, KEEP) or 0
  forget_before(barriers, now + kept, 2 * (last - first + 1)) -- mechanism: lapsed-barriers-kept
  for i = first, last do
    redis.call('ZADD', barriers, 'GT', ms(now + barrier_ms), ARGV[i]) -- mechanism: barrier-set
  end
end

-- Returns whether all of them stood until now. If one did not, it may have stood for too short.
local function remove_barriers(barriers, first, last)
  local stood, now = true, now_ms()
  for i = first, last do
    local deadline = redis.call('ZSCORE', barriers, ARGV[i])
    stood = stood and deadline and tonumber(deadline) > now -- mechanism: barriers-stood
    redis.call('ZREM', barriers, ARGV[i]) -- mechanism: barriers-distinguished
  end
  return stood
end

-- Which barriers there were is unknown: bar all keys for as long as the last of them would have stood.
local function bar_all(barriers, barrier_ms)
  redis.call('ZADD', barriers, '+inf', NO_BARRIER)
  redis.call('ZADD', barriers, 'GT', ms(now_ms() + barrier_ms), string.rep('0', TOKEN_BYTES) .. '\n')
end

-- To be called before the lease or the entry is written: if the server stops in between, the index has a key too many.
local function put_in_index(index, expiry, key, life_ms)
  redis.call('ZADD', index, 0, key)
  redis.call('ZADD', expiry, 'GT', ms(now_ms() + life_ms + SLACK_MS), key)
end

-- Iterates over lists in ARGV from `at` on, each given as its length and its items of so many parts: returns a function
-- that takes the number of parts, and returns the places of the first and the last part of the next list.
local function lists(at)
  return function(parts)
    local first = at + 1
    at = first + ARGV[at] * parts
    return first, at - 1
  end
end

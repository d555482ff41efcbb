-- Put in front of every script. Nothing here touches a key unless its name says so.

local SLACK_MS = 1000 -- an index member outlives what it stands for
local RECHECK_MS = 60000 -- a member that outlived its score (PERSIST by hand) is looked at again after this
local TOKEN_BYTES = 32 -- a barrier is: token, head, newline, filter
local NOBODY = string.rep('0', TOKEN_BYTES) .. '\0\n' -- a barrier that bars no key: where it is missing, barriers were lost

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function ms(number)
  return string.format('%.0f', number)
end

-- What tells one life of a server's data from every other: the replication id, which is a new one with each start and
-- with each promotion. (The run_id stays: a master that is demoted and promoted again has another's data by then.)
-- Also gives the role. nil and the reason where an ACL denies it.
local function life()
  local info = redis.pcall('INFO', 'replication')
  if type(info) ~= 'string' then return nil, info.err or 'INFO' end
  local id = string.match(info, 'master_replid:(%w+)') -- mechanism: replication-id
  if not id then
    local server = redis.pcall('INFO', 'server')
    id = type(server) == 'string' and string.match(server, 'run_id:(%w+)') or nil
  end
  return id, id and string.match(info, 'role:(%w+)') or 'neither master_replid nor run_id in INFO'
end

-- The policy by which the server evicts keys that have no TTL, the index among them; '' where it does not, or does not tell.
local function evicts()
  local info = redis.pcall('INFO', 'memory')
  if type(info) ~= 'string' or string.find(info, '\nmaxmemory:0\r') then return '' end
  return string.match(info, 'maxmemory_policy:(allkeys[%w-]*)') or ''
end

-- A lease holds the token of who has it, and the moment of its grant. For what is sent twice may arrive once more when a
-- writer has come between: what was loaded or written under the first grant must not be stored under the second.
local function token_in(held)
  return held and string.match(held, '^[^\n]*')
end

local function moment()
  local time = redis.call('TIME')
  return time[1] .. '.' .. time[2]
end

-- Does `text` begin with one of `heads`?
local function begins(text, heads)
  for _, head in ipairs(heads) do
    if string.sub(text, 1, #head) == head then return true end
  end
  return false
end

-- Is the byte a part of a character, but not its first one?
local function continues(byte)
  return byte and byte >= 128 and byte < 192
end

-- Where `piece`, in which `?` is any one character, ends in `text` if it begins at `from`; nil if it does not stand there.
local function stands_at(text, piece, from)
  local at = from
  for i = 1, #piece do
    local wanted, found = string.byte(piece, i), string.byte(text, at)
    if not found or (wanted ~= found and wanted ~= 63) then return nil end
    at = at + 1
    while wanted == 63 and continues(string.byte(text, at)) do at = at + 1 end
  end
  return at - 1
end

-- Where `piece` begins and ends first at or behind `from`.
local function find_piece(text, piece, from)
  if not string.find(piece, '?', 1, true) then return string.find(text, piece, from, true) end
  for at = from, #text do
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
local function fits(text, glob)
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

-- Does `filter` let `key` through? '' lets all, '=' only the head itself, else what follows the head must fit the glob.
-- What a long key's value was cannot be read from its digest, `%h`: it is let through rather than left stale.
local function reaches(head, filter, key)
  if string.sub(key, 1, #head) ~= head then return false end
  if filter == '' then return true end
  if filter == '=' then return #key == #head end
  local digest = string.find(key, '%h', #head + 1, true)
  if digest and (filter ~= '$' or digest == #head + 1) then return true end
  return fits(string.sub(key, #head + 1), filter)
end

-- The entry that answers who asks for its lease. `old` says which does not: '' any does, '*' none does, else one that has
-- at most so many ms left to live.
local function answer(entry, old)
  local raw = old ~= '*' and redis.call('GET', entry)
  if not raw or old == '' then return raw end
  local left = redis.call('PTTL', entry)
  return (left < 0 or left > tonumber(old)) and raw
end

-- Does a barrier cover the key? And have barriers been lost? nil for what need not be known any more.
local function barred(barriers, key)
  local lost = true
  for _, barrier in ipairs(redis.call('ZRANGEBYSCORE', barriers, '(' .. ms(now_ms()), '+inf')) do
    if barrier == NOBODY then lost = false end
    local newline = string.find(barrier, '\n', TOKEN_BYTES + 1, true)
    if not newline then return true end
    local head = string.sub(barrier, TOKEN_BYTES + 1, newline - 1)
    if reaches(head, string.sub(barrier, newline + 1), key) then return true end
  end
  return false, lost
end

-- Nobody knows whose barriers there were: all keys are barred, for as long as the last of them would have stood.
local function bar_all(barriers, barrier_ms)
  redis.call('ZADD', barriers, '+inf', NOBODY)
  redis.call('ZADD', barriers, 'GT', ms(now_ms() + barrier_ms), string.rep('0', TOKEN_BYTES) .. '\n')
end

-- Always before the lease or the entry is written: should the server stop in between, the index has one key too many.
local function put_in_index(index, expiry, key, life_ms)
  redis.call('ZADD', index, 0, key)
  redis.call('ZADD', expiry, 'GT', ms(now_ms() + life_ms + SLACK_MS), key)
end

-- The lists that a script is given in ARGV from there on, each as its length and its items. The function that is given
-- tells the places of the first and of the last part of the next list, whose items have so many parts.
local function lists(at)
  return function(parts)
    local first = at + 1
    at = first + ARGV[at] * parts
    return first, at - 1
  end
end

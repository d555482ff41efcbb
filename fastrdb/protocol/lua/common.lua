-- Put in front of every script. A function here touches a key only if its name or a parameter says so.

local SLACK_MS = 1000 -- an index member outlives its entry by this
local RECHECK_MS = 60000 -- a member whose entry outlived its score (PERSIST by hand) is checked again after this
local COMPLETE = '\0' -- an index member that says: every key under the head behind it is in the index
local READER, WRITER = 'r', 'w' -- which kind of caller has a lease

-- A script is one moment: the server's time, asked once, as seconds and microseconds.
local asked_time
local function time()
  asked_time = asked_time or redis.call('TIME')
  return unpack(asked_time)
end

local function now_ms()
  local seconds, micros = time()
  return seconds * 1000 + math.floor(micros / 1000)
end

local function ms(number) return string.format('%.0f', number) end

-- The replication id and the role of the server; nil and the reason where an ACL denies INFO. The id changes with each
-- start and each promotion. (run_id stays the same when a master is demoted and promoted again, with another's data.)
local known_id, known_role
local function replication_id()
  if known_role then return known_id, known_role end
  local info = redis.pcall('INFO', 'replication')
  if type(info) ~= 'string' then return nil, info.err or 'INFO' end
  local id = string.match(info, 'master_replid:(%w+)') -- mechanism: replication-id
  if not id then
    local server = redis.pcall('INFO', 'server')
    id = type(server) == 'string' and string.match(server, 'run_id:(%w+)') or nil
  end
  known_id, known_role = id, id and string.match(info, 'role:(%w+)') or 'neither master_replid nor run_id in INFO'
  return known_id, known_role
end

-- The policy by which the server evicts keys, '' if it denies INFO; and 1 if it evicts keys without a TTL, such as the
-- index, else 0.
local function eviction_policy()
  local info = redis.pcall('INFO', 'memory')
  local policy = type(info) == 'string' and string.match(info, 'maxmemory_policy:([%w-]+)') or ''
  if string.sub(policy, 1, 7) ~= 'allkeys' or string.find(info, '\nmaxmemory:0\r') then return policy, 0 end
  return policy, 1
end

local function evicts_index()
  local _, evicts = eviction_policy()
  return evicts == 1
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
  return sealed(token, kind) .. (moment or table.concat({time()}, '.')) -- mechanism: lease-has-moment
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

-- Put keys into the index. To be called before their leases or entries are written: if the server stops in between, the
-- index has keys too many.
local function put_in_index(index, expiry, life_ms, ...)
  local death, members, deaths = ms(now_ms() + life_ms + SLACK_MS), {}, {}
  for i, key in ipairs({...}) do
    members[2 * i - 1], members[2 * i] = 0, key
    deaths[2 * i - 1], deaths[2 * i] = death, key
  end
  redis.call('ZADD', index, unpack(members))
  redis.call('ZADD', expiry, 'GT', unpack(deaths))
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

-- Put in front of the scripts of the protocol, behind barriers.lua: tags, names that writers reach, and the clock of stamps.
-- A tag is `table\0` or `table:column=value\0`, a name is a prefix of the tags that it reaches. Functions take the names
-- of the four keys of tags as a table: `tags` (members: a tag and an entry), `tagged` (entry -> its tags, one a line),
-- `ended` (name -> when a writer on it ended), `columns` (`table:column`, those that some entry is tagged by).
-- A barrier over a name has the head \0 and the name: no entry begins so.

local CLOCK, BEGAN = '\0clock', '\0began' -- members of `ended`: the clock; when this set began, below zero
local STAMPS_FROM = '(1000000000000' -- stamps are microseconds, and greater; the two above are never removed
local TAGGED_LIST = '[^\n]+'
local MOST_COLUMNS = 256 -- so many columns of a table that entries are tagged by a writer reads

-- The clock of grants and ends, in microseconds. It goes on when the clock of the machine is set back.
local function tick(keys)
  local seconds, micros = time()
  local now, last = seconds * 1000000 + micros, redis.call('ZSCORE', keys.ended, CLOCK)
  if last then
    now = math.max(now, last + 1) -- mechanism: clock-goes-on
  else
    -- A new namespace: nothing can have been lost, unless the server evicts.
    if redis.call('EXISTS', keys.tags, keys.tagged, keys.columns) == 0 and not evicts_index() then
      redis.call('ZADD', keys.tags, 0, COMPLETE)
      redis.call('HSET', keys.tagged, COMPLETE, '')
      redis.call('ZADD', keys.columns, 0, COMPLETE)
    end
    redis.call('ZADD', keys.ended, ms(-now), BEGAN)
  end
  redis.call('ZADD', keys.ended, ms(now), CLOCK)
  return now
end

local function open_tags(keys)
  if redis.call('EXISTS', keys.ended) == 0 then tick(keys) end
end

-- Is each entry with tags in the sets? Each set has a member that is lost with it.
local function tags_are_whole(keys)
  open_tags(keys)
  return redis.call('ZSCORE', keys.tags, COMPLETE)
    and redis.call('HEXISTS', keys.tagged, COMPLETE) == 1
    and redis.call('ZSCORE', keys.columns, COMPLETE)
end

-- Begin the sets anew. The sets are whole when all entries have been deleted since: see tags_complete.
local function tags_anew(keys, mark)
  redis.call('UNLINK', keys.tags, keys.tagged, keys.columns)
  redis.call('ZADD', keys.tags, 0, mark)
end

local function tags_complete(keys, mark)
  if redis.call('ZREM', keys.tags, mark) == 0 then return 0 end
  redis.call('ZADD', keys.tags, 0, COMPLETE)
  redis.call('HSET', keys.tagged, COMPLETE, '')
  redis.call('ZADD', keys.columns, 0, COMPLETE)
  return 1
end

local function entry_of(member)
  return string.sub(member, string.find(member, '\0', 1, true) + 1)
end

-- Take the tags of an entry that goes out of the sets. Where no tags are in use, one check does for the whole script.
local has_tags
local function forget_tags(keys, entry)
  if has_tags == nil then has_tags = redis.call('EXISTS', keys.tagged) == 1 end
  if not has_tags then return end
  local known = redis.call('HGET', keys.tagged, entry)
  if not known then return end
  for tag in string.gmatch(known, TAGGED_LIST) do redis.call('ZREM', keys.tags, tag .. entry) end
  redis.call('HDEL', keys.tagged, entry)
end

local function put_tags(keys, entry, tags)
  for tag in string.gmatch(tags, TAGGED_LIST) do redis.call('ZADD', keys.tags, 0, tag .. entry) end -- mechanism: tag-indexed
  redis.call('HSET', keys.tagged, entry, tags)
end

-- Look at one entry with tags, by chance. If index and expiry were lost since, it is in neither, and no fill would ever
-- find it dead: it is entered again as one that may be dead by now.
local function check_any(keys, index, expiry)
  local entry = redis.call('HRANDFIELD', keys.tagged)
  if entry and entry ~= COMPLETE and not redis.call('ZSCORE', expiry, entry) then
    redis.call('ZADD', index, 0, entry)
    redis.call('ZADD', expiry, ms(now_ms()), entry) -- mechanism: lost-deaths-found
  end
end

-- Note that writers on names have ended. Stamps are forgotten after twice the longest lease.
local function stamp(keys, barriers, lease_ms, first, last)
  if first > last then return end
  insist(barriers)
  local now = tick(keys)
  local keep = math.max(lease_ms, -(redis.call('ZSCORE', barriers, KEEP) or 0))
  -- Some of the old ones, and more than are added: all of a busy time at once would hold the server up.
  local over = redis.call('ZRANGEBYSCORE', keys.ended, STAMPS_FROM, ms(now - 2000 * keep), 'LIMIT', 0, 2 * (last - first + 1)) -- mechanism: stamps-forgotten-in-portions
  if #over > 0 then redis.call('ZREM', keys.ended, unpack(over)) end
  for i = first, last do redis.call('ZADD', keys.ended, 'GT', ms(now), ARGV[i]) end -- mechanism: stamp-set
end

-- The columns in use that the writer has not named, as names. A list in ARGV: `table:`, and what it has named, one a line.
-- Where a table has very many of them, the name of all its rows instead.
local function unnamed(keys, first, last)
  local named, found = {}, {}
  for i = first, last, 2 do
    for column in string.gmatch(ARGV[i + 1], TAGGED_LIST) do named[column] = true end
    local columns = redis.call('ZRANGEBYLEX', keys.columns, '[' .. ARGV[i], '(' .. ARGV[i] .. '\255', 'LIMIT', 0, MOST_COLUMNS + 1)
    if #columns > MOST_COLUMNS then -- mechanism: columns-bounded
      found[#found + 1] = ARGV[i]
    else
      for _, column in ipairs(columns) do
        if not named[column] then found[#found + 1] = column .. '=' end -- mechanism: columns-in-use-named
      end
    end
  end
  return found
end

-- The set of the names of writers whose barriers stand, or have lapsed since; nil if barriers were lost, if all is
-- barred, or if there are too many to look at.
local function names_barred(barriers, since, before)
  if not redis.call('ZSCORE', barriers, NO_BARRIER) then return nil end
  local names = {}
  -- The clock of stamps may be ahead of the clock of deadlines: what stands now counts in any case.
  local from = math.min(math.floor(since / 1000), now_ms())
  local found = redis.call('ZRANGEBYSCORE', barriers, '(' .. ms(from), '+inf', 'LIMIT', 0, MOST_LOOKS + 1) -- mechanism: lapsed-barriers
  if #found > MOST_LOOKS then return nil end -- mechanism: name-looks-bounded
  for _, barrier in ipairs(found) do
    local newline = string.find(barrier, '\n', TOKEN_BYTES + 1, true)
    local head = string.sub(barrier, TOKEN_BYTES + 1, (newline or 0) - 1)
    if begins(head, '\0') then
      if barrier ~= NO_BARRIER then names[string.sub(head, 2)] = true end
    elseif head == '' or head == before then
      return nil
    end
  end
  return names
end

-- Has a writer on this tag ended since, or is one between the begin of its COMMIT and its end?
local function reached_since(keys, names, tag, since)
  local colon, equals = string.find(tag, ':', 1, true), string.find(tag, '=', 1, true)
  local covering = {tag, ''}
  if equals then covering = {tag, string.sub(tag, 1, equals), string.sub(tag, 1, colon), ''} end
  for _, name in ipairs(covering) do
    if names[name] then return true end -- mechanism: tag-barriers
    local ended = redis.call('ZSCORE', keys.ended, name)
    if ended and tonumber(ended) > since then return true end -- mechanism: tag-stamps
  end
  return false
end

-- Put a column into use. Until the last of the barriers that stand now has lapsed, any row of its table counts.
local function use_column(keys, barriers, column)
  local latest = redis.call('ZREVRANGEBYSCORE', barriers, '(+inf', 0, 'WITHSCORES', 'LIMIT', 0, 1)[2] or 0
  local clock = tonumber(redis.call('ZSCORE', keys.ended, CLOCK))
  redis.call('ZADD', keys.columns, 0, column)
  redis.call('ZADD', keys.ended, ms(math.max(clock, (latest + 1) * 1000)), column) -- mechanism: column-counts-later
end

-- What is put has no fill that checks: its columns are used from now on.
local function use_columns(keys, barriers, tags)
  for column in string.gmatch(tags, '([^\n=]+)=') do
    if not redis.call('ZSCORE', keys.columns, column) then use_column(keys, barriers, column) end
  end
end

-- Have all writers whose end may come after the grant named this column? Not those that began before the column was in
-- use: until the last of their barriers has lapsed, any row of the table counts. That moment lies in `ended`.
local function is_named(keys, barriers, column, since)
  if redis.call('ZSCORE', keys.columns, column) then
    local old = redis.call('ZSCORE', keys.ended, column)
    return not old or tonumber(old) < since
  end
  use_column(keys, barriers, column)
  return false
end

-- The first of an entry's tags that a writer has reached since the lease was granted, '\0' if that is unknown, else nil.
local function touched(keys, barriers, before, tags, since)
  local clock, began = redis.call('ZSCORE', keys.ended, CLOCK), redis.call('ZSCORE', keys.ended, BEGAN)
  if not clock or not began or tonumber(clock) < since or -began > since then return '\0' end -- mechanism: lost-stamps
  local names = names_barred(barriers, since, before)
  if not names then return '\0' end
  for tag in string.gmatch(tags, TAGGED_LIST) do
    if reached_since(keys, names, tag, since) then return tag end
    local equals = string.find(tag, '=', 1, true)
    local column = equals and string.sub(tag, 1, equals - 1)
    if column and not is_named(keys, barriers, column, since) then
      local any = string.sub(tag, 1, string.find(tag, ':', 1, true) - 1) .. '\0'
      if reached_since(keys, names, any, since) then return tag end -- mechanism: new-column-looks-at-table
    end
  end
end

-- When the lease was granted, by the clock of stamps.
local function granted_at(held)
  return tonumber(string.match(grant_in(held), '%d+$'))
end

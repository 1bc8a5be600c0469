-- The producer's options of an entry, and lanes: the unsettled entries of each ordering key, as members of a group's
-- "queue" key, in the order of their ids, the redriven ones last; loaded before the transitions of groups and those
-- that remove entries (see scripts.py).
--
-- The active members of a lane have a due time: they are leased, or wait for their turn, their time or their retry. The
-- others have none, or inf. The group's concurrency says how many may be active: one, or the first number of its note.
--
-- returns nothing by itself
-- writes  the "queue" key (see group.lua): it loses a member that another program has added; the "due" key
-- bound   twice as many members of a lane as were ever active at once, at most MOST_ACTIVE

-- Read the producer's options, which stand first: "ailf.how" and "<at ms>|<max deliveries>|<ordering key>".
local function options_of(fields, first)
  if fields[first] ~= 'ailf.how' then return nil end
  local at, most, key = string.match(fields[first + 1], '^(%d*)|(%d*)|(.*)$')
  return { at = math.min(tonumber(at) or 0, LARGEST), most = tonumber(most), key = key ~= '' and key }
end

local function lane(key) return #key .. ':' .. key .. ':' end

local function lane_member(key, member)
  local tilde, ms, seq = string.match(member, '^(~?)(%d+)%-(%d+)$')
  return lane(key) .. tilde .. string.rep('0', 20 - #ms) .. ms .. '-' .. string.rep('0', 20 - #seq) .. seq
end

-- Return the first members of a range of a lane, at most `most`.
local function lane_range(queue, prefix, from, to, most)
  local members = {}
  for _, text in ipairs(redis.call('ZRANGEBYLEX', queue, '[' .. prefix .. from, '(' .. prefix .. to, 'LIMIT', 0, most)) do
    local tilde, ms, seq = string.match(short(string.sub(text, #prefix + 1)), '^(~?)0*(%d+)%-0*(%d+)$')
    local id = tilde and ms .. '-' .. seq
    if id and is_id(id) then
      members[#members + 1] = tilde .. id
    else -- another program's
      redis.call('ZREM', queue, text)
    end
  end
  return members
end

-- Return the first member of a lane; with "~" as `from` the first redriven one.
local function first_of_lane(queue, key, from) return lane_range(queue, lane(key), from or '', '\255', 1)[1] end

local MOST_ACTIVE = 100

-- Read the group's note of its concurrency: how many members of a lane may be active, and how many may be from before
-- it was lowered; nothing if there is no note.
local function read_concurrency(note)
  local width, most = string.match(short(note), '^(%d+) (%d+)$')
  if not width then return nil end
  width = math.min(tonumber(width), MOST_ACTIVE)
  return width, math.max(width, math.min(tonumber(most), MOST_ACTIVE))
end

-- Return the active members of a lane, each with its due time, and the next ones behind them.
local function look_at_lane(due, queue, key, most)
  local prefix, active, rest = lane(key), {}, {}
  local members = lane_range(queue, prefix, '', '~', most)
  for _, member in ipairs(lane_range(queue, prefix, '~', '\255', most)) do members[#members + 1] = member end
  local scores = #members > 0 and redis.call('ZMSCORE', due, unpack(members))
  for n, member in ipairs(members) do
    if scores[n] and scores[n] ~= 'inf' then
      active[#active + 1] = { member, tonumber(scores[n]) }
    else
      rest[#rest + 1] = member
    end
  end
  return active, rest
end

local STEP = 1 / 4096 -- ms: a double keeps no smaller part of a time
local turns = {} -- by "due" key: the last turn that was given

-- Return the due time of a member of a lane that is due now: it comes behind all that are due, also behind those of
-- this millisecond.
local function next_turn(due)
  if not turns[due] then
    local last = redis.call('ZREVRANGEBYSCORE', due, '(' .. number(now + 1), '-inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
    turns[due] = math.max(now, tonumber(last or now))
  end
  turns[due] = turns[due] + STEP
  return string.format('%.12f', turns[due])
end

-- Make the next members of a lane active, up to `width`. Return whether one more is.
--
-- time_of: returns when a member may be delivered (ms)
local function fill_lane(due, queue, key, width, most, time_of)
  local active, rest = look_at_lane(due, queue, key, most)
  local more = math.min(#rest, width - #active)
  for n = 1, more do
    local at = time_of(rest[n])
    redis.call('ZADD', due, at > now and number(at) or next_turn(due), rest[n])
  end
  return more > 0
end

-- Return when a parked entry may be delivered (ms) and its ordering key or false; nil if a member isn't parked.
local function terms_of_parked(parked, member)
  local entry = is_id(member) and redis.call('XRANGE', parked, member, member)[1] -- else redriven, or another program's
  if not entry then return nil end
  local at, key = string.match(entry[2][2], '^(%d*)|(.*)$')
  return math.min(tonumber(at) or 0, LARGEST), key and key ~= '' and key
end

-- The producer's options of an entry, and lanes: the unsettled entries of each ordering key, as members of a group's
-- "queue" key, in the order of their ids, the redriven ones last; loaded before the transitions of groups and those
-- that remove entries (see scripts.py).
--
-- The active members of a lane have a due time: they are leased, or wait for their turn, their time or their retry. The
-- others have none, or inf. The group's concurrency says how many may be active: one, or the first number of its note.
--
-- returns nothing by itself
-- writes  the "queue" key (see group.lua): it loses a member that another program has added; the "due" key
-- bound   twice as many members of a lane as could ever be active at once, at most MOST_ACTIVE

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

-- Return the member that a text of the "queue" key stands for; nil if another program added it.
local function member_in_lane(queue, prefix, text)
  local tilde, ms, seq = string.match(short(string.sub(text, #prefix + 1)), '^(~?)0*(%d+)%-0*(%d+)$')
  local id = tilde and ms .. '-' .. seq
  if id and is_id(id) then return tilde .. id end
  redis.call('ZREM', queue, text)
  return nil
end

-- Return the first member of a lane; with "~" as `from` the first redriven one.
local function first_of_lane(queue, key, from)
  local prefix = lane(key)
  local begin = '[' .. prefix .. (from or '')
  local first = redis.call('ZRANGEBYLEX', queue, begin, '(' .. prefix .. '\255', 'LIMIT', 0, 1)[1]
  return first and member_in_lane(queue, prefix, first)
end

-- Read the group's note of its concurrency: how many members of a lane may be active, and how many may be from before
-- it was lowered; nothing without a note.
local function read_concurrency(note)
  local MOST_ACTIVE = 100
  local width, most = string.match(short(note), '^(%d+) (%d+)$')
  if not width then return nil end
  width = math.min(tonumber(width), MOST_ACTIVE)
  return width, math.max(width, math.min(tonumber(most), MOST_ACTIVE))
end

-- Return the functions of a group's lanes. They are made where a script needs them: the server makes the others each
-- time that it runs a script.
--
-- width, most: as `read_concurrency` returns them, or 1
-- time_of:     a function that returns when a member may be delivered (ms)
local function make_lanes(due, queue, width, most, time_of)
  local STEP = 1 / 4096 -- ms: a double keeps no smaller part of a time
  local lanes, last_turn = {}, nil

  -- Return the due time of a member that is due now: it comes behind all that are due, also of this millisecond.
  function lanes.next_turn()
    if not last_turn then
      local before_it = { 'ZREVRANGEBYSCORE', due, '(' .. number(now + 1), '-inf', 'WITHSCORES', 'LIMIT', 0, 1 }
      last_turn = math.max(now, tonumber(redis.call(unpack(before_it))[2] or now))
    end
    last_turn = last_turn + STEP
    return string.format('%.12f', last_turn)
  end

  -- Return the active members of a lane, each with its due time, and the next ones behind them.
  function lanes.look(key)
    local prefix, members, active, rest = lane(key), {}, {}, {}
    for _, range in ipairs({ { '', '~' }, { '~', '\255' } }) do
      local from, to = '[' .. prefix .. range[1], '(' .. prefix .. range[2]
      for _, text in ipairs(redis.call('ZRANGEBYLEX', queue, from, to, 'LIMIT', 0, most)) do
        members[#members + 1] = member_in_lane(queue, prefix, text)
      end
    end
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

  -- Make the next members of a lane active after one of them has gone. Return whether there was one.
  function lanes.fill(key)
    local active, rest = {}, nil
    if most == 1 then rest = { first_of_lane(queue, key) } else active, rest = lanes.look(key) end
    local more = math.min(#rest, width - #active)
    for n = 1, more do
      local at = time_of(rest[n])
      redis.call('ZADD', due, at > now and number(at) or lanes.next_turn(), rest[n])
    end
    return more > 0
  end

  return lanes
end

-- Return when a parked entry may be delivered (ms) and its ordering key or false; nil if a member isn't parked.
local function terms_of_parked(parked, member)
  local entry = is_id(member) and redis.call('XRANGE', parked, member, member)[1] -- else redriven, or another program's
  if not entry then return nil end
  local at, key = string.match(entry[2][2], '^(%d*)|(.*)$')
  return math.min(tonumber(at) or 0, LARGEST), key and key ~= '' and key
end

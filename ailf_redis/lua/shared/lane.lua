-- The producer's options of an entry, and lanes: the unsettled entries of each ordering key, as members of a group's
-- "queue" key, in the order of their ids, the redriven ones last; loaded before the transitions of groups and those
-- that remove entries (see scripts.py).
--
-- returns nothing by itself
-- writes  the "queue" key (see group.lua): it loses a member that another program has added

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

-- Return the first member of a lane; with "~" as `from` the first redriven one.
local function first_of_lane(queue, key, from)
  local prefix = lane(key)
  local begin = '[' .. prefix .. (from or '')
  local first = redis.call('ZRANGEBYLEX', queue, begin, '(' .. prefix .. '\255', 'LIMIT', 0, 1)[1]
  if not first then return nil end
  local tilde, ms, seq = string.match(short(string.sub(first, #prefix + 1)), '^(~?)0*(%d+)%-0*(%d+)$')
  local id = tilde and ms .. '-' .. seq
  if not (id and is_id(id)) then -- another program's
    redis.call('ZREM', queue, first)
    return nil
  end
  return tilde .. id
end

-- Return when a parked entry may be delivered (ms) and its ordering key or false; nil if a member isn't parked.
local function terms_of_parked(parked, member)
  local entry = is_id(member) and redis.call('XRANGE', parked, member, member)[1] -- else redriven, or another program's
  if not entry then return nil end
  local at, key = string.match(entry[2][2], '^(%d*)|(.*)$')
  return math.min(tonumber(at) or 0, LARGEST), key and key ~= '' and key
end

-- What the transitions of rate limiters share; loaded before each of them, after wait_queue.lua and before the
-- algorithms: token_bucket.lua, fixed_window.lua, sliding_window.lua and concurrency.lua.
--
-- KEYS[1] states   text: "<id>:<numbers>;" for each limit that was charged: the state as ailf/limits has it
-- KEYS[2] queue, KEYS[3] waiters   see wait_queue.lua
-- KEYS[4…] slots   of each concurrency limit, in their order: see concurrency.lua
-- ARGV             of each transition its own; a limit takes five: kind, id, three parameters
-- returns nothing by itself
-- writes  KEYS[1] with the time until its limits are at full capacity as TTL, and MARGIN more
--
-- The arithmetic equals that of ailf/limits, which explains it, bit by bit. No sum may exceed LARGEST here, so what is
-- subtracted comes first. A limit is a table with the methods of its kind: b (token_bucket.lua), f (fixed_window.lua),
-- s (sliding_window.lua) or c (concurrency.lua):
--   load(id, entry, …)    make a limit of its stored text, if there is one, and its three parameters; one at full
--                         capacity if the stored text can't be ours
--   wait(cost)            return after how many ms the cost passes: 0 for now, nil for never
--   charge(cost, token)   charge the cost, whether it fits or not; return the two numbers of its charge receipt
--   remaining(), ends()   return the largest cost that passes now; the time when it is at full capacity, 0 if it is
--   settle(cost, actual, one, two, token)   replace a charge with another; return whether the state changed
--   observe(remaining, reset, pause)        let no more pass than this; return whether the state changed
--   text()                return the numbers of its state; not of concurrency, whose state isn't in KEYS[1]
--   drop(token)           free a token's slots; of concurrency alone
-- and with capacity, the largest cost that can ever pass; where it has a text: id, entry (the stored text, if there is
-- one), changed (whether it has to be stored).
-- bound   the limits of a request

local MARGIN = 1000
local EACH = 5
local QUEUE, WAITERS = KEYS[2], KEYS[3]
local max, min, floor, ceil = math.max, math.min, math.floor, math.ceil
local stored = redis.call('GET', KEYS[1]) or ''
local foreign = #stored -- how many bytes of it belong to limits that this request doesn't name
local loaded = {} -- the limits of this request that have an id
local makers, kinds = {}, {} -- by kind: the function that makes the methods, and the methods that were needed

local function limit_at(first)
  local kind, id = ARGV[first], ARGV[first + 1]
  local methods = kinds[kind]
  if not methods then
    methods = { __index = makers[kind]() }
    kinds[kind] = methods
  end
  local from, colon = string.find(stored, id .. ':', 1, true)
  local entry = from and string.sub(stored, from, string.find(stored, ';', colon, true))
  if entry then foreign = foreign - #entry end
  local limit = methods.__index.load(id, entry, ARGV[first + 2] + 0, ARGV[first + 3] + 0, ARGV[first + 4] + 0)
  if limit.id then loaded[#loaded + 1] = limit end
  return setmetatable(limit, methods)
end

-- Store the states of this request's limits, before those of other limits, with the longest TTL that one of them needs.
local function store()
  local text, ends = '', 0
  for _, limit in ipairs(loaded) do
    if foreign > 0 and limit.entry then
      local from, to = string.find(stored, limit.entry, 1, true) -- nil if it was within another entry
      if from then stored = string.sub(stored, 1, from - 1) .. string.sub(stored, to + 1) end
    end
    ends = max(ends, limit:ends())
    text = text .. (limit.changed and limit.id .. ':' .. limit:text() .. ';' or limit.entry or '')
  end
  if foreign > 0 then text = text .. stored end -- ours first: a second entry of the same id behind it is never read
  local left = max(1, ends - now + MARGIN, redis.call('PTTL', KEYS[1])) -- other limits may need it for longer
  left = number(min(left, LARGEST))
  if text ~= '' then redis.call('SET', KEYS[1], text, 'PX', left) end
end

-- What the transitions of rate limiters share; loaded before each of them, after wait_queue.lua and before the
-- algorithms: token_bucket.lua, fixed_window.lua, sliding_window.lua and concurrency.lua.
--
-- A branch is what has states and a wait queue of its own: one key of a limiter with all its limits, or in a budget
-- tree one key of one limit. The keys of a branch stand together:
-- KEYS[1] states   text: "<id>:<numbers>;" for each limit that was charged: the state as ailf/limits has it
-- KEYS[2] queue, KEYS[3] waiters   see wait_queue.lua
-- KEYS[4…] slots   of each concurrency limit, in their order: see concurrency.lua
-- KEYS             of the next branch, in a budget tree: states, queue, waiters, slots; and so on
-- ARGV             of each transition its own; a limit takes five: kind, id, three parameters. A limit whose kind is a
--                  capital letter begins the next branch
-- returns nothing by itself
-- writes  the states of each branch with the time until its limits are at full capacity as TTL, and MARGIN more
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
--   text()                return the numbers of its state; not of concurrency, whose state isn't in the text
--   drop(token)           free a token's slots; of concurrency alone
-- and with branch, and capacity, the largest cost that can ever pass; where it has a text: id, entry (the stored text,
-- if there is one), changed (whether it has to be stored).
-- bound   the limits of a request

local MARGIN = 1000
local EACH = 5
local max, min, floor, ceil = math.max, math.min, math.floor, math.ceil
local makers, kinds = {}, {} -- by kind: the function that makes the methods, and the methods that were needed
local branches = {}
local used = 0 -- how many of KEYS belong to the branches so far

-- Begin the next branch. `loaded` are its limits that have an id; `foreign` is how many bytes of its states belong to
-- limits that this request doesn't name; `changed` whether it has to be stored.
local function next_branch()
  local stored = redis.call('GET', KEYS[used + 1]) or ''
  local branch = { states = KEYS[used + 1], queue = KEYS[used + 2], waiters = KEYS[used + 3], stored = stored,
    foreign = #stored, loaded = {} }
  branches[#branches + 1] = branch
  used = used + 3
  return branch
end

local branch = next_branch() -- that of the limits that are read

-- Return the key of the next concurrency limit.
local function next_slots()
  used = used + 1
  return KEYS[used]
end

local function limit_at(first)
  local kind, id = ARGV[first], ARGV[first + 1]
  if string.byte(kind) < 97 then
    kind, branch = string.lower(kind), next_branch()
  end
  local methods = kinds[kind]
  if not methods then
    methods = { __index = makers[kind]() }
    kinds[kind] = methods
  end
  local from, colon = string.find(branch.stored, id .. ':', 1, true)
  local entry = from and string.sub(branch.stored, from, string.find(branch.stored, ';', colon, true))
  if entry then branch.foreign = branch.foreign - #entry end
  local limit = methods.__index.load(id, entry, ARGV[first + 2] + 0, ARGV[first + 3] + 0, ARGV[first + 4] + 0)
  limit.branch = branch
  if limit.id then branch.loaded[#branch.loaded + 1] = limit end
  return setmetatable(limit, methods)
end

-- Note that the state of a limit has to be stored.
local function change(limit) limit.changed, limit.branch.changed = true, true end

-- Store the states of this request's limits in the branches that changed, before those of other limits, with the
-- longest TTL that one of them needs.
local function store()
  for _, each in ipairs(branches) do
    if each.changed then
      local text, ends, stored = '', 0, each.stored
      for _, limit in ipairs(each.loaded) do
        if each.foreign > 0 and limit.entry then
          local from, to = string.find(stored, limit.entry, 1, true) -- nil if it was within another entry
          if from then stored = string.sub(stored, 1, from - 1) .. string.sub(stored, to + 1) end
        end
        ends = max(ends, limit:ends())
        text = text .. (limit.changed and limit.id .. ':' .. limit:text() .. ';' or limit.entry or '')
      end
      if each.foreign > 0 then text = text .. stored end -- ours first: a second entry of an id behind it is never read
      local left = max(1, ends - now + MARGIN, redis.call('PTTL', each.states)) -- other limits may need it for longer
      left = number(min(left, LARGEST))
      if text ~= '' then redis.call('SET', each.states, text, 'PX', left) end
    end
  end
end

-- The fixed window, as ailf/limits has it; loaded after limit.lua.
--
-- returns nothing by itself
-- writes  nothing
--
-- begin, used: the state; begin is nil at full capacity

makers.f = function()
  local function load(id, entry, per, capacity)
    local begin, used
    if entry then begin, used = string.match(entry, '^(%d+),(%d+);$', #id + 2) end
    begin, used = tonumber(begin), tonumber(used)
    if used and (begin > LARGEST or used > LARGEST) then begin, used = nil, nil end
    return { id = id, per = per, capacity = capacity, entry = entry, begin = begin, used = used }
  end

  -- Return the begin of the window that counts, and what was charged in it.
  local function window(fixed)
    local begin = now - now % fixed.per
    if fixed.begin and fixed.begin >= begin then return fixed.begin, fixed.used end
    return begin, 0
  end

  local function wait(fixed, cost)
    if cost > fixed.capacity then return nil end
    local begin, used = window(fixed)
    return cost > 0 and used > fixed.capacity - cost and begin + fixed.per - now or 0
  end

  local function charge(fixed, cost)
    local begin, used = window(fixed)
    fixed.begin, fixed.used = begin, min(used + cost, LARGEST)
    return begin, 0
  end

  local function remaining(fixed)
    local _, used = window(fixed)
    return max(0, fixed.capacity - used)
  end

  local function ends(fixed) return fixed.begin and fixed.used > 0 and fixed.begin + fixed.per or 0 end

  local function settle(fixed, cost, actual, one)
    local begin, used = window(fixed)
    if one ~= begin or not fixed.begin and actual <= cost then return false end
    fixed.begin, fixed.used = begin, max(0, min(used - cost + actual, LARGEST))
    return true
  end

  local function observe(fixed, reported, _, pause)
    local begin, used = window(fixed)
    local target = fixed.capacity
    if pause <= 0 then target = reported >= 0 and fixed.capacity - min(reported, fixed.capacity) or 0 end
    if target <= used then return false end
    fixed.begin, fixed.used = begin, target
    return true
  end

  local function text(fixed) return string.format('%.0f,%.0f', fixed.begin, fixed.used) end

  return { load = load, wait = wait, charge = charge, remaining = remaining, ends = ends, settle = settle,
    observe = observe, text = text }
end

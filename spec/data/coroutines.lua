--- What the functions of the library `coroutine` do that the watchdog replaces, case by case. Called with two libraries, it returns where
-- they differ; watchdog_hosts_test.c gives it the stock one and the watchdog's.

local cases = {}

local function add(name, case) cases[#cases + 1] = { name = name, run = case } end

-- A value as text, without what differs from run to run.
local function told(value)
  local text = type(value) == "string" and ("%q"):format(value) or tostring(value)
  return (text:gsub("0x%x+", "ADDRESS"))
end

local function all(...)
  local list = table.pack(...)
  for i = 1, list.n do list[i] = told(list[i]) end
  return table.concat(list, ", ", 1, list.n)
end

local function closing(fn) return setmetatable({}, { __close = fn }) end

-- Values -----------------------------------------------------------------------------------------------------------------------------

for _, count in ipairs { 0, 1, 2, 30, 250 } do
  local values = {}
  for i = 1, count do values[i] = i end

  add(("resume passes %d values"):format(count), function(lib)
    local co = lib.create(function(...)
      local n = select("#", ...)
      return n, lib.yield(n, ...)
    end)
    local first = all(lib.resume(co, table.unpack(values)))
    return first, all(lib.resume(co, table.unpack(values))), lib.status(co), all(lib.resume(co))
  end)

  add(("wrap passes %d values"):format(count), function(lib)
    local step = lib.wrap(function(...) return lib.yield(...) end)
    return all(step(table.unpack(values))), all(step(table.unpack(values))), all(pcall(step))
  end)
end

add("nil and false pass", function(lib)
  local step = lib.wrap(function(...) lib.yield(nil, ..., false, nil) end)
  return all(step(nil, false)), all(step(nil))
end)

add("more values than a stack holds", function(lib)
  local MANY = 600000
  local function many() return table.unpack({}, 1, MANY) end
  local function above_many(fn) -- fn's frame lies on one that holds as many
    local function frame(...) -- luacheck: ignore 212
      local result = fn()
      return result
    end
    return frame(many())
  end
  local full = lib.create(function(...) return lib.yield(), ... end)
  lib.resume(full, many())
  local full_step = lib.wrap(function(...) return lib.yield(), ... end)
  full_step(many())
  local function first_two(...) return all(select("#", ...) < 3 and select("#", ...), (select(2, ...))) end
  return first_two(lib.resume(full, many())), lib.status(full), first_two(pcall(full_step, many())),
    above_many(function() return first_two(lib.resume(lib.create(many))) end),
    above_many(function() return first_two(pcall(lib.wrap(many))) end)
end)

-- Errors -----------------------------------------------------------------------------------------------------------------------------

for name, value in pairs { string = "no", number = 7, table = setmetatable({}, { __tostring = function() return "an object" end }),
  ["nil"] = false, ["true"] = true } do
  for level = 0, 2 do
    add(("an error with a %s at level %d"):format(name, level), function(lib)
      local function fail() error(value or nil, level) end
      local co, step = lib.create(fail), lib.wrap(fail)
      return all(lib.resume(co)), lib.status(co), all(lib.resume(co)), all(pcall(step)), all(pcall(step)), all(lib.close(co)),
        lib.status(co), all(lib.close(co))
    end)
  end
end

add("the place that wrap puts before an error is its caller's", function(lib)
  local function first() lib.wrap(function() error "deep" end)() end
  local function second() lib.wrap(first)() end
  return all(pcall(lib.wrap(second))), all(pcall(second)), all(pcall(first))
end)

add("wrap does not touch an error that is out of memory", function(lib)
  return all(pcall(lib.wrap(function() error("not enough memory", 0) end)))
end)

add("an error of Lua's own", function(lib)
  return all(pcall(lib.wrap(function() return nil + 1 end))), all(lib.resume(lib.create(function() return {} .. {} end)))
end)

add("an error in a message handler", function(lib)
  return all(xpcall(lib.wrap(error), function(text) return lib.wrap(function() error(text) end)() end, "x"))
end)

-- Misuse -----------------------------------------------------------------------------------------------------------------------------

for _, value in ipairs { 1, "x", {}, print, false } do
  add("a " .. type(value) .. " in place of a coroutine", function(lib)
    return all(pcall(lib.resume, value)), all(pcall(lib.close, value)), all(pcall(lib.status, value))
  end)
end

for _, value in ipairs { 1, "x", {}, coroutine.create(print), false } do
  add("a " .. type(value) .. " in place of a function", function(lib) return all(pcall(lib.wrap, value)), all(pcall(lib.create, value)) end)
end

add("no argument", function(lib)
  return all(pcall(lib.resume)), all(pcall(lib.close)), all(pcall(lib.wrap)), all(pcall(function() lib.resume() end))
end)

add("the one that runs", function(lib)
  local step
  step = lib.wrap(function()
    local co = lib.running()
    return all(lib.resume(co)), all(pcall(lib.close, co)), lib.status(co), all(pcall(step))
  end)
  return step()
end)

add("the one that resumed", function(lib)
  return lib.wrap(function()
    local outer = lib.running()
    return lib.wrap(function() return all(lib.resume(outer)), all(pcall(lib.close, outer)), lib.status(outer) end)()
  end)()
end)

add("one that has ended", function(lib)
  local co, step = lib.create(function() end), lib.wrap(select)
  return all(lib.resume(co)), lib.status(co), all(lib.resume(co)), all(lib.resume(co)), all(lib.close(co)), all(pcall(step, "#")),
    all(pcall(step)), all(pcall(step, 1))
end)

-- State ------------------------------------------------------------------------------------------------------------------------------

add("status and running", function(lib)
  local co
  co = lib.create(function()
    local inside = lib.status(co)
    local same, is_main = lib.running()
    return inside, same == co, is_main, lib.isyieldable(), lib.isyieldable(co), lib.wrap(function() return lib.status(co) end)()
  end)
  return lib.status(co), all(lib.resume(co)), lib.status(co)
end)

add("isyieldable inside of C functions", function(lib)
  return lib.wrap(function()
    local inside
    local _ = ("x"):gsub("x", function() inside = lib.isyieldable() end)
    return inside, lib.isyieldable()
  end)()
end)

add("a yield across pcall, a metamethod and an iterator", function(lib)
  local adds = setmetatable({}, { __add = function(_, n) return n + lib.yield "add" end })
  local step = lib.wrap(function()
    local _, sum = pcall(function() return adds + 1 end)
    for n in function() return lib.yield "next" end do sum = sum + n end
    return sum
  end)
  return step(), step(2), step(10), step(20), step(nil)
end)

add("a yield across a C call", function(lib)
  local function body() table.sort({ 2, 1, 3 }, lib.yield) end
  local co = lib.create(body)
  return all(pcall(lib.wrap(body))), all(lib.resume(co)), lib.status(co)
end)

add("wrap as an iterator, a comparator and a metamethod", function(lib)
  local seen = {}
  for a, b in lib.wrap(function() for i = 1, 3 do lib.yield(i, i * i) end end) do seen[#seen + 1] = a + b end
  local list = { 3, 1, 2 }
  table.sort(list, lib.wrap(function(a, b) while true do a, b = lib.yield(a < b) end end))
  local t = setmetatable({}, { __index = lib.wrap(function(_, key) while true do _, key = lib.yield(key .. "!") end end) })
  return all(table.unpack(seen)), all(table.unpack(list)), t.a, t.b
end)

add("nested too deeply", function(lib)
  local depth = 0
  local function deeper()
    depth = depth + 1
    return lib.wrap(deeper)()
  end
  local ok, text = pcall(deeper)
  return ok, text:match "C stack overflow", depth > 100
end)

add("a wrapped coroutine that nobody holds is collected", function(lib)
  local weak = setmetatable({}, { __mode = "k" })
  for _ = 1, 10 do
    local step = lib.wrap(function() lib.yield() end)
    step()
    weak[step] = true
  end
  collectgarbage()
  return next(weak)
end)

-- Closing ----------------------------------------------------------------------------------------------------------------------------

add("close of one that has not begun, waits, has ended", function(lib)
  local order = {}
  local function body()
    local _ <close> = closing(function(_, err) order[#order + 1] = "first " .. told(err) end)
    local _ <close> = closing(function(_, err) order[#order + 1] = "second " .. told(err) end)
    lib.yield()
  end
  local new, waits, over = lib.create(body), lib.create(body), lib.create(body)
  lib.resume(waits)
  lib.resume(over)
  lib.resume(over)
  return all(lib.close(new)), all(lib.close(waits)), all(lib.close(over)), lib.status(new), lib.status(waits), all(lib.resume(waits)),
    all(lib.resume(new)), all(table.unpack(order))
end)

add("errors and yields while closing", function(lib)
  local order = {}
  local function body(fail)
    local _ <close> = closing(function(_, err) order[#order + 1] = told(err) end)
    local _ <close> = closing(function(_, err) error("closer after " .. told(err), 0) end)
    local _ <close> = closing(function() lib.yield "from a closer" end)
    if fail then error "body" end
    lib.yield()
  end
  local waits, dies, step = lib.create(body), lib.create(body), lib.wrap(body)
  lib.resume(waits)
  local first = all(lib.resume(dies, true))
  return all(lib.close(waits)), first, lib.status(dies), all(lib.close(dies)), all(pcall(step, true)), all(pcall(step)),
    all(table.unpack(order))
end)

add("wrap closes what an error left open, at once", function(lib)
  local order = {}
  local step = lib.wrap(function()
    local _ <close> = closing(function(_, err) order[#order + 1] = told(err) end)
    local _ <close> = closing(function() error { "another" } end)
    error "body"
  end)
  return all(pcall(step)), all(table.unpack(order)), all(pcall(step))
end)

add("close inside of close", function(lib)
  local inner = lib.create(function()
    local _ <close> = closing(function() error("inner", 0) end)
    lib.yield()
  end)
  local outer = lib.create(function()
    local _ <close> = closing(function() error(all(lib.close(inner)), 0) end)
    lib.resume(inner)
    lib.yield()
  end)
  lib.resume(outer)
  return all(lib.close(outer)), lib.status(inner), lib.status(outer)
end)

-- The names that tracebacks and errors give to functions are taken from what is loaded, so each library is loaded while it is looked at.
local function results(lib)
  local kept, found = package.loaded.coroutine, {}
  package.loaded.coroutine = lib
  for i, case in ipairs(cases) do found[i] = all(pcall(case.run, lib)) end
  package.loaded.coroutine = kept
  return found
end

return function(stock, other)
  local wanted, got, differences = results(stock), results(other), {}
  for i, case in ipairs(cases) do
    if wanted[i] ~= got[i] then
      differences[#differences + 1] = ("%s:\n  stock  %s\n  other  %s"):format(case.name, wanted[i], got[i])
    end
  end
  return table.concat(differences, "\n"), #cases, table.concat(wanted, "\n")
end

--- Generations of endpoint scripts that carry a number: three scripts and two modules, each with the number of its own, so that an answer
-- tells which of them it came from.
-- @module spec.numbered

local support = require "spec.support"
local uv = require "luv"

local numbered = {
  --- What a generation can suffer from, with what the log says of it; %d is its number.
  flaws = {
    syntax = "c%%.lua:%%d+: syntax error near 'broken%d'",
    runtime = "shared/init%%.lua:%%d+: broken%d",
    duplicate = "b%%.lua:%%d+: GET /twice%d",
    endless = "parts/inner%%.lua:%%d+: stopped after [%%d.]+ s of loading",
  },
}

local FLAWED = {
  syntax = { "c.lua", "broken%d broken%d" },
  runtime = { "shared/init.lua", "error 'broken%d'" },
  duplicate = { "b.lua", "function EXTRA(app) for _ = 1, 2 do app:get('/twice%d', function() return 200 end) end end" },
  endless = { "parts/inner.lua", "while true do end" },
}

-- The numbers are told as they were when the request began, and again when it ends.
local SCRIPT = [[
local korv, shared, inner = require "korv", require "shared", require "parts.inner"
local NUMBER = %d

local function numbers(app) return { NUMBER, shared.number, inner.number, app.number } end

return function(app)
  app.number = NUMBER
  shared.join(NUMBER)
  app:get("/%s", function() return 200, { generation = app.generation, numbers = numbers(app) } end)
  app:get("/%s/later", function()
    local generation = app.generation
    korv.sleep(0.005 + 0.015 * math.random())
    return 200, { generation = generation, numbers = numbers(app) }
  end)
  if EXTRA then EXTRA(app) end
end
]]

-- What there is once: a stream, what the server holds, and a check that no file is of another number, as while some were not written yet.
local EXTRA = [[
local function EXTRA(app)
  local state = app.state
  state.apps = state.apps or setmetatable({}, { __mode = "k" })
  state.apps[app] = true
  app:check(function() return shared.agree(inner.number), "mixed" end)
  app:get("/ticks", function(request)
    local n = 0
    while not state.over do
      n = n + 1
      request:send { n = n, generation = app.generation, numbers = numbers(app) }
      korv.sleep(0.005)
    end
    return 200
  end)
  app:store("/over", function() state.over = true return 200 end)
  app:get("/holdings", function()
    for _ = 1, 3 do collectgarbage() end
    local apps = 0
    for _ in pairs(state.apps) do apps = apps + 1 end
    local statm <close> = io.open "/proc/self/statm"
    local _, pages = statm:read("n", "n")
    return 200, { bytes = math.ceil(collectgarbage "count" * 1024), apps = apps, rss_bytes = pages * 4096 }
  end)
  app:store("/reload", function()
    local ok, message = app:reload()
    return ok and 200 or 409, message
  end)
end
]]

local SHARED = [[
local shared, joined = { number = %d }, {}
function shared.join(number) joined[#joined + 1] = number end
function shared.agree(inner)
  for _, number in ipairs(joined) do
    if number ~= shared.number then return false end
  end
  return inner == shared.number
end
return shared
]]

--- The files of a generation.
-- @int number
-- @string[opt] flaw a key of `numbered.flaws`
-- @treturn table texts by names
function numbered.files(number, flaw)
  local files = { ["shared/init.lua"] = SHARED:format(number), ["parts/inner.lua"] = ("return { number = %d }\n"):format(number) }
  for _, name in ipairs { "a", "b", "c" } do files[name .. ".lua"] = SCRIPT:format(number, name, name) end
  files["a.lua"] = files["a.lua"]:gsub("\nreturn function", function(text) return "\n" .. EXTRA .. text end)
  if flaw then
    local file, text = table.unpack(FLAWED[flaw])
    files[file] = text:gsub("%%d", number) .. "\n" .. files[file]
  end
  return files
end

local function write(path, text)
  local file = assert(io.open(path, "wb"))
  assert(file:write(text))
  assert(file:close())
end

local function shell(command, ...)
  local done = support.run { "sh", "-ec", command, "sh", ... }
  if done.code ~= 0 then error(done:describe "failed") end
  return done.stdout
end

-- Every file into a folder, in place: what reads it meanwhile sees a part.
function numbered.write_in_place(folder, files)
  for name, text in pairs(files) do write(folder .. "/" .. name, text) end
end

--- Every file beside its place first and then moved there.
function numbered.rename_into_place(folder, files)
  for name, text in pairs(files) do write(folder .. "/" .. name .. ".new", text) end
  for name in pairs(files) do assert(uv.fs_rename(folder .. "/" .. name .. ".new", folder .. "/" .. name)) end
end

--- Commits the files, aside, and checks that out.
function numbered.checkout(folder, files)
  local aside = folder .. ".aside"
  numbered.write_in_place(aside, files)
  shell([[
    git -C "$1" -c user.name=a -c user.email=a@b.c commit -qam next
    commit=$(git -C "$1" rev-parse HEAD)
    git -C "$2" checkout -qf --detach "$commit"]], aside, folder)
end

--- A folder with generation 1, under git.
-- @string name
-- @treturn string its path
function numbered.folder(name)
  local path = support.path(name)
  assert(uv.fs_mkdir(path, 448))
  for _, inner in ipairs { "parts", "shared" } do assert(uv.fs_mkdir(path .. "/" .. inner, 448)) end
  numbered.write_in_place(path, numbered.files(1))
  shell([[
    cd "$1"
    git init -q
    git add .
    git -c user.name=a -c user.email=a@b.c commit -qm first
    git config gc.auto 0
    git worktree add -q --detach "$1.aside"]], path)
  return path
end

return numbered

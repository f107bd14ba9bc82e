// Owns the demonstration: a world with two guests and an autoscaler, until it is interrupted.
import { once } from 'node:events';

import { ROOT, World } from './world';

const world = await World.start();
try {
    await world.startJournal();
    await world.startService();
    await Promise.all([
        world.keepAutoscaler(), world.startGuest('web', { vcpus: 2 }), world.startGuest('db', { max: 64 }),
    ]);
    const address = await world.keepCockpit(ROOT);
    console.log(`The page is at ${address}/vcpud, until Ctrl+C.`);
    await Promise.race([once(process, 'SIGINT'), once(process, 'SIGTERM')]);
} finally {
    await world.stop();
}
